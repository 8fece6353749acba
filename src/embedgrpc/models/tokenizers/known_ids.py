"""Which token ids a tokenizer can make."""

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import BoolArray


def find_known_ids(tokenizer: tokenizers.Tokenizer) -> BoolArray:
    """Return which ids the tokenizer can make of a text.

    A special token is not among them if its name in a text is plain characters.

    Returns:
        bool [highest id + 1].
    """
    ids = np.array(list(tokenizer.get_vocab(with_added_tokens=True).values()), np.int64)
    known = np.zeros(int(ids.max(initial=-1)) + 1, np.bool_)
    known[ids] = True
    if tokenizer.encode_special_tokens:
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            known[token_id] &= not token.special
    return known
