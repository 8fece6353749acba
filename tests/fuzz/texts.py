"""Odd texts, for all steps from the text of a request to a sequence of tokens.

An input is a byte for the model, a byte for the truncation, and UTF-8.
"""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tokenizing.texts import check_text
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.kinds import Kind, Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import TokenLimitError
from tests.fuzz.mutation import some
from tests.fuzz.target import Execute, Refusals, Target, check_refusal
from tests.models.runner import DEFAULT_MODEL, FIXTURES

_MODELS = (
    DEFAULT_MODEL,
    *(
        str(FIXTURES / name)
        for name in ("cross-bert", "cross-xlmr", "roberta-mean", "gemma-dense", "qwen3-last",
                     "modernbert-cls", "cross-mpnet")
    ),
)  # fmt: skip
_CUTS = tuple(Truncation)
_MAX_CHARACTERS = 8000
_SEEDS = (
    "The tower is 330 metres tall.", "a", "naïve café, Ångström", "東京は日本の首都です。",
    "한국어", "Русский текст", "שלום עולם", "مرحبا بالعالم", "नमस्ते", "x\u0301" * 20,
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈", "[CLS] [SEP] <s> </s> <pad> [MASK]",
    "<|endoftext|><|im_start|>", "\u2581a\u2581b", "##ing ##", "\u0120a",
    "https://example.com/a?b=c&d=%20#e", "1e308 0x7f -0 1,000,000.00", "\t\r\n \u00a0\u3000",
    "\0\x01\x7f", "def f(x):\n    return {'a': [x] * 3}", "\u202egnihtemos\u202c",
    "\ufb01 \ufb00 \u00df \u0130 \u0131 \u017f", "\ufeff\ufffd\uffff",
)  # fmt: skip


@cache
def _alphabets() -> tuple[str, ...]:
    """Return characters by Unicode category: all categories are equally likely."""
    found: dict[str, list[str]] = {}
    for code in (*range(0x3400), *range(0xA000, 0xD800), *range(0xE000, 0x20000, 3)):
        character = chr(code)
        found.setdefault(unicodedata.category(character), []).append(character)
    return tuple("".join(characters) for characters in found.values())


def mutate(random: Random) -> bytes:
    """Return a mutated text, rarely a long one."""
    text = random.choice(_SEEDS)
    for _ in range(some(random)):
        text = random.choice(_CHANGES)(random, text)
    if random.random() < 0.01:
        text = text[:64] * random.choice((100, 1000, 4000))
    choice = bytes((random.randrange(len(_MODELS)), random.randrange(len(_CUTS))))
    return choice + text[:300_000].encode()


def _insert(random: Random, text: str) -> str:
    place = random.randrange(len(text) + 1)
    alphabet = random.choice(_alphabets())
    new = "".join(random.choice(alphabet) for _ in range(random.choice((1, 1, 2, 8))))
    return text[:place] + new + text[place:]


def _splice(random: Random, text: str) -> str:
    other = random.choice(_SEEDS)
    begin = random.randrange(len(other))
    place = random.randrange(len(text) + 1)
    return text[:place] + other[begin : begin + random.randrange(1, 20)] + text[place:]


def _delete(random: Random, text: str) -> str:
    place = random.randrange(len(text) + 1)
    return text[:place] + text[place + random.choice((1, 2, 8)) :]


def _repeat(random: Random, text: str) -> str:
    place = random.randrange(len(text) + 1)
    part = text[place : place + random.choice((1, 1, 2, 5))]
    return text[:place] + part * random.choice((2, 10, 100)) + text[place:]


def _normalize(random: Random, text: str) -> str:
    return unicodedata.normalize(random.choice(("NFC", "NFD", "NFKC", "NFKD")), text)


def _change_case(random: Random, text: str) -> str:
    return random.choice((text.upper, text.lower, text.swapcase, text.title))()


def _reverse(random: Random, text: str) -> str:
    del random
    return text[::-1]


_CHANGES: tuple[Callable[[Random, str], str], ...] = (
    _insert, _insert, _insert, _splice, _splice, _delete, _repeat, _normalize, _change_case,
    _reverse,
)  # fmt: skip


@contextmanager
def _open(_scratch: Path) -> Iterator[Execute]:
    loaded = []
    for source in _MODELS:
        files = resolve(source)
        properties = read(files)
        loaded.append((properties, Tokenizer.load(properties)))

    def execute(content: bytes) -> None:
        properties, tokenizer = loaded[content[0]]
        try:
            _run(properties, tokenizer, content[2:].decode(), _CUTS[content[1]])
        except EngineError as error:
            check_refusal(error)
        except TokenLimitError:
            Refusals.count += 1

    for number in range(len(_MODELS)):
        for text in _SEEDS:
            execute(bytes((number, 0)) + text.encode())
    yield execute


def _run(
    properties: ModelProperties, tokenizer: Tokenizer, text: str, truncation: Truncation
) -> None:
    checked = check_text(
        text, max_characters=_MAX_CHARACTERS, truncation=truncation, field="texts[0]"
    )
    (ids,) = tokenizer.encode([checked.text])
    rows = int(properties.config.get("vocab_size", 0)) or 1 << 31
    assert ids.dtype == np.int64
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < rows
    limit = properties.max_tokens
    if properties.kind is Kind.CROSS_ENCODER:
        sequence = tokenizer.build_pair(ids[:7], ids, max_tokens=limit, truncation=truncation)
    else:
        sequence = tokenizer.build_sequence(ids, max_tokens=limit, truncation=truncation)
    assert len(sequence.input_ids) == min(sequence.token_count_before, limit)
    types = sequence.token_type_ids
    assert types is None or len(types) == len(sequence.input_ids)


TARGET = Target(
    name="texts",
    what="texts of requests, checked and made sequences by eight tokenizers",
    mutate=mutate,
    open=_open,
    test_runs=20_000,
)
