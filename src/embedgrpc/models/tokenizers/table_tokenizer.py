"""Loads the tokenizer of a static model, as model2vec and sentence-transformers do.

Neither adds special tokens, and neither reads `tokenizer_config.json`.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

import tokenizers

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.weight_table import WeightTable


def load_table_tokenizer(path: Path, content: bytes, table: TokenTable) -> tokenizers.Tokenizer:
    """Load `tokenizer.json`, whose tokens must all have a vector.

    Raises:
        ModelError: A token has no vector.
    """
    tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= table.entries:
        raise ModelError(
            f"{path} has a token with the id {highest}, but {path.parent / table.file} has vectors "
            f"for {table.entries} tokens"
        )
    return tokenizer


def check_entries(path: Path, tokenizer: tokenizers.Tokenizer, table: WeightTable) -> None:
    """Check that a tokenizer has as many tokens as a table has weights; the reference does so too.

    Raises:
        ModelError: It has more or fewer, or a token has no weight.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if len(ids) != table.entries or max(ids, default=-1) >= table.entries:
        raise ModelError(
            f"{path} has {len(ids)} tokens, the highest id being {max(ids, default=-1)}, but "
            f"{table.folder / table.file} has {table.entries} weights"
        )


def count_characters_per_token(tokenizer: tokenizers.Tokenizer, table: TokenTable) -> int:
    """Return how many characters of a text are kept for each token of the limit; 0 for all.

    Source: `median_token_length` of model2vec.
    """
    if not table.of_model2vec or not table.has_limit:
        return 0
    return max(int(median(map(len, tokenizer.get_vocab(with_added_tokens=True)))), 1)


def find_unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return the id of the token for what is not in the vocabulary.

    Source: `_get_unk_token_id` of model2vec.
    """
    model: Any = tokenizer.model
    if hasattr(model, "unk_token"):
        return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
    unknown_id: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return unknown_id
