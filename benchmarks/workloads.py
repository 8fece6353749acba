"""The texts of the benchmarks: pieces of the Cranfield abstracts, the same in every run."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CRANFIELD = Path(__file__).parent / "data" / "cranfield"
_SEED = 20


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts of one kind.

    Attributes:
        name: The name in tables.
        what: The lengths, in words.
        texts: The texts, in the order of sending.
    """

    name: str
    what: str
    texts: tuple[str, ...]


def documents() -> dict[str, str]:
    """Return the documents that have a text, by id."""
    with (CRANFIELD / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {row["id"]: row["text"] for row in rows if row["text"]}


def queries() -> dict[str, str]:
    """Return the queries by id."""
    with (CRANFIELD / "queries.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {row["id"]: row["text"] for row in rows}


def short() -> Workload:
    """Return queries of about 8 to 24 tokens, no two equal: the server runs equal texts once."""
    return Workload(
        "short",
        "5 to 16 words",
        _pieces(lambda chooser: chooser.randint(5, 16), 512),
    )


def passages() -> Workload:
    """Return passages of about 128 tokens."""
    return Workload("passages", "about 100 words each", _pieces(lambda _: 100, 224))


def mixed() -> Workload:
    """Return texts from 8 tokens to the default model's limit, mostly short ones."""
    return Workload(
        "mixed",
        "6 to 200 words, log-uniform",
        _pieces(lambda chooser: round(6 * (200 / 6) ** chooser.random()), 448),
    )


def uniform() -> Workload:
    """Return texts of the default model's limit, 256 tokens."""
    return Workload("uniform", "250 words each, cut to 256 tokens", _pieces(lambda _: 250, 224))


def candidates() -> Workload:
    """Return documents of about 150 tokens, for rerank calls of fifty."""
    return Workload("rerank", "about 124 words each", _pieces(lambda _: 124, 800))


def _pieces(words: Callable[[random.Random], int], count: int) -> tuple[str, ...]:
    """Cut running text into pieces; `words` returns the length of the next one."""
    chooser = random.Random(_SEED)  # noqa: S311 - texts, not secrets
    running = " ".join(documents().values()).split()
    pieces = []
    position = 0
    for _ in range(count):
        length = words(chooser)
        pieces.append(" ".join(running[position : position + length]))
        position = (position + length) % (len(running) - 300)
    return tuple(pieces)
