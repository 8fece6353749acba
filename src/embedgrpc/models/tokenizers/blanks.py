"""Finds out whether a tokenizer takes several blanks for one."""

import tokenizers

# Those that common normalisers turn into a space.
BLANKS = " \t\n\r\u00a0\u3000"
_RUNS = tuple(
    f"{first}{second}{' ' * count}" for first in BLANKS for second in BLANKS for count in (0, 1, 30)
)
_AROUND = (("", "a"), ("a", ""), ("a", "b"), ("a.", "(b"), ("\u4e2d", "\u56fd"), ("1", "2"))


def collapses_blanks(tokenizer: tokenizers.Tokenizer) -> bool:
    """Return whether blanks in a row make the same tokens as one space, wherever they are."""
    names = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if any(blank in name for name in names for blank in BLANKS):
        return False
    around = [*_AROUND, *((name, "a") for name in names[:8]), *(("a", name) for name in names[:8])]
    long = [before + run + after for before, after in around for run in _RUNS]
    short = [f"{before} {after}" for before, after in around for _ in _RUNS]
    found = tokenizer.encode_batch_fast([*long, *short], add_special_tokens=False)
    ids = [encoding.ids for encoding in found]
    return ids[: len(long)] == ids[len(long) :]
