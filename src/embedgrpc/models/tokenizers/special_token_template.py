"""Finds the special tokens that a tokenizer puts around texts, by running it.

Families differ ([CLS] a [SEP] b [SEP]; <s> a </s></s> b </s>; a <eos>), and the post-processor can
only be run on texts. So it runs once at load, and the tokens that it adds are recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import tokenizers

# Every known vocabulary has tokens for most of these.
_PROBES = ("a", "the", "1", "of", ".", "b", "in", "\u4e00")


@dataclass(frozen=True, slots=True)
class SpecialTokenTemplate:
    """The special tokens around one text, or around two.

    Attributes:
        specials: Ids before, between and after the texts: one group more than texts.
        special_types: The type id of each of them.
        text_types: The type id of all tokens of each text.
    """

    specials: tuple[tuple[int, ...], ...]
    special_types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def special_count(self) -> int:
        """The number of special tokens."""
        return sum(len(group) for group in self.specials)

    @property
    def has_types(self) -> bool:
        """Whether any type id is not 0."""
        return any(self.text_types) or any(any(group) for group in self.special_types)


def find_template(tokenizer: tokenizers.Tokenizer, texts: int) -> SpecialTokenTemplate:
    """Return the template for one text or for a pair.

    Args:
        tokenizer: Without truncation and padding.
        texts: 1 or 2.

    Raises:
        ValueError: The tokenizer does not add the same tokens to every text.
    """
    probes = [probe for probe in _PROBES if tokenizer.encode(probe, add_special_tokens=False).ids]
    templates = {
        _read_template(tokenizer, (first, second)[:texts])
        for first, second in zip(probes, reversed(probes), strict=True)
    }
    if len(templates) != 1:
        raise ValueError(f"its special tokens around {texts} texts are not always the same")
    return templates.pop()


def _read_template(tokenizer: tokenizers.Tokenizer, texts: tuple[str, ...]) -> SpecialTokenTemplate:
    encoded = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    rows = zip(encoded.sequence_ids, encoded.ids, encoded.type_ids, strict=True)
    specials: list[tuple[int, ...]] = [()]
    special_types: list[tuple[int, ...]] = [()]
    text_types: list[int] = []
    for sequence, group in groupby(rows, key=lambda row: row[0]):
        ids, types = _columns(group)
        if sequence is None:
            specials[-1], special_types[-1] = ids, types
            continue
        if sequence != len(text_types) or list(ids) != plain[sequence] or len(set(types)) != 1:
            raise ValueError("it changes a text's own tokens when it adds special ones")
        text_types.append(types[0])
        specials.append(())
        special_types.append(())
    if len(text_types) != len(texts):
        raise ValueError("it leaves a text out")
    return SpecialTokenTemplate(tuple(specials), tuple(special_types), tuple(text_types))


def _columns(
    rows: Iterable[tuple[int | None, int, int]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kept = list(rows)
    return tuple(row[1] for row in kept), tuple(row[2] for row in kept)
