"""Reads the parts of `tokenizer.json` that a tokenizer class takes from it."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import normalizers

from embedgrpc.models.files.json_file import JsonObject

# The normaliser's table may be one step of several.
_TABLE = "precompiled_charsmap"


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """What a class takes from the files.

    Attributes:
        tokenizer: `tokenizer.json`.
        values: The settings of `tokenizer_config.json`.
        unk: The unknown token.
    """

    tokenizer: JsonObject
    values: JsonObject
    unk: str

    @property
    def model(self) -> JsonObject:
        """The model: its vocabulary, and the merges of BPE."""
        return JsonObject(self.tokenizer.path, self.tokenizer.table("model"))

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a setting that is true or false."""
        return self.values.flag(key, default=default)

    def scores(self) -> list[tuple[str, float]]:
        """Return the vocabulary of a unigram model."""
        entries = self.model.values.get("vocab")
        if not isinstance(entries, list):
            raise self.tokenizer.wrong("model.vocab", "pairs of token and score")
        return [(token, score) for token, score in entries]

    def ids(self) -> dict[str, int]:
        """Return the vocabulary of any other model."""
        entries = self.model.values.get("vocab")
        if isinstance(entries, list):
            return {
                (one[0] if isinstance(one, list) else one): index
                for index, one in enumerate(entries)
            }
        if not isinstance(entries, dict):
            raise self.tokenizer.wrong("model.vocab", "an object of tokens and their ids")
        return entries

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges of a BPE model."""
        merges = self.model.values.get("merges")
        if not isinstance(merges, list):
            raise self.tokenizer.wrong("model.merges", "a list of merges")
        split = [one.split(" ") if isinstance(one, str) else one for one in merges]
        return [(first, second) for first, second in split]

    def table(self) -> list[normalizers.Normalizer]:
        """Return the step with the table of replacements, if there is one."""
        normalizer = self.tokenizer.values.get("normalizer")
        for step in steps_of(normalizer):
            if step.get("type") == "Precompiled" and isinstance(step.get(_TABLE), str):
                return [normalizers.Precompiled(base64.b64decode(step[_TABLE]))]
        return []


def steps_of(part: object) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normaliser or pre-tokenizer, one level deep as the reference does."""
    if not isinstance(part, dict):
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(part.get(key), list):
            yield from (step for step in part[key] if isinstance(step, dict))
            return
    yield part
