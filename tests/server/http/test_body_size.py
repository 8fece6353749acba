"""How many values a body has, counted before it is decoded."""

import json
import random
import time
from collections.abc import Callable

import pytest

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.http.body_size import check_values
from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.routing import decode

INPUTS = 1024
VALUES = 16 * INPUTS + 1024
NUMBERS = 128 * INPUTS
BODY_BYTES = 4 * 1024 * 1024 - 512
CALL_MS_MAX = 5.0
ODD = ['"', "\\", '\\"', "a,b", "[{:", "1,2", "\\\\", "\u4e2d", " ", ', "', ",1"]


def is_refused(data: bytes, *, max_inputs: int = INPUTS) -> bool:
    """Return whether a body has too many values."""
    try:
        check_values(data, max_inputs=max_inputs)
    except InvalidRequestError as error:
        return error.metadata["label"] == "TOO_MANY_FIELDS"
    return False


@pytest.mark.parametrize("unit", ["[]", '""', '"a"', "{}", "null", "[1]", '{"a":0}'])
def test_many_values_are_refused(unit: str) -> None:
    """The limit is exact: each comma, colon and opening bracket counts."""
    each = 1 + sum(unit.count(one) for one in ",:[{")
    for count, refused in ((VALUES // each - 1, False), (VALUES // each + 2, True)):
        data = b"[" + b",".join([unit.encode()] * count) + b"]" + b" " * VALUES
        assert is_refused(data) is refused


@pytest.mark.parametrize("separator", [b",", b", "])
def test_numbers_have_a_limit_of_their_own(separator: bytes) -> None:
    """Lists of token ids are long, and decoded fast."""
    for count, refused in ((NUMBERS, False), (NUMBERS + 2, True)):
        assert is_refused(b"[" + separator.join([b"7"] * count) + b"]") is refused


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 40))]
)
def test_punctuation_inside_strings_does_not_count(seed: int) -> None:
    """Quotes and backslashes may stand anywhere, also where the body is cut into chunks."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    texts = ["".join(chance.choices(ODD, k=chance.randrange(3000))) for _ in range(200)]
    texts += ["\\" * chance.randrange(70_000), '"' * chance.randrange(70_000)]
    chance.shuffle(texts)
    data = json.dumps({"input": texts}, ensure_ascii=chance.random() < 0.5).encode()
    # A colon, two brackets, and the commas; the smallest limit is above 1,024.
    spare = 1024 + 16 - len(texts) - 2
    for more, refused in ((spare, False), (spare + 1, True)):
        padded = data[:-1] + b"".join(b',"k"' for _ in range(more)) + b"}"
        assert is_refused(padded, max_inputs=1) is refused


@pytest.mark.parametrize("data", [b"", b'"', b"\\", b'"\\', b"\\" * 200_000, b'"' * 20_001])
def test_what_is_no_json_passes(data: bytes) -> None:
    """The decoder refuses it."""
    assert not is_refused(data + b" " * VALUES)


def bodies() -> dict[str, tuple[str, bytes]]:
    """Return the costliest bodies that pass: their paths, and their bytes."""
    some = {}
    lists = {
        "/v1/embeddings": (b'{"input":[', b"]}", (b"[]", b'"a"', b"[1]")),
        "/v1/rerank": (
            b'{"query":"q","documents":[',
            b"]}",
            (b"{}", b'{"":0}', b'{"text":"a","b":[]}'),
        ),
        "/v2/embed": (b'{"inputs":[', b"]}", (b'{"content":[{"type":"text","text":"a"}]}',)),
        "/rerank/": (b'{"sentence_pairs":[', b"]}", (b'["a","b"]',)),
        "/v1/embedding": (b"[", b"]", (b'{"query":"a"}',)),
        "/rerank": (b'{"query":"q","documents":[],', b"}", (b'"k":[]',)),
    }
    for path, (first, last, units) in lists.items():
        for unit in units:
            each = 1 + sum(unit.count(one) for one in b",:[{")
            whole = first + b",".join([unit] * ((VALUES - 8) // each)) + last
            some[f"{path} {unit.decode()}"] = path, whole
    ids = b'{"input":[[' + b",".join([b"30000"] * (NUMBERS - 1)) + b"]]}"
    some["numbers"] = "/v1/embeddings", ids
    for name, unit in {"plain": b"a", "escaped": rb"\u4e2d", "wide": "\u4e2d".encode()}.items():
        text = unit * (BODY_BYTES // len(unit))
        some[f"a text, {name}"] = "/embed", b'{"inputs":"' + text + b'"}'
        some[f"an unknown key, {name}"] = "/embed", b'{"inputs":"a","z":"' + text + b'"}'
    return some


BODIES = bodies()


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the CPU time of some work in ms."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3


@pytest.mark.parametrize("case", BODIES)
def test_decoding_does_not_hold_the_interpreter(case: str) -> None:
    """No body that passes takes over 5 ms to decode, in which no other call could be served.

    On a slow or busy machine the yardstick is Python's own decoder, which is faster with escapes.
    """
    path, data = BODIES[case]
    match = all_routes().find("POST", path)
    assert not is_refused(data)
    decode(match, data)
    passes = 2 if len(match.routes) > 1 else 1
    shortest_ms = plain_ms = float("inf")
    for _ in range(6):
        shortest_ms = min(shortest_ms, cpu_ms(lambda: decode(match, data)))
        if shortest_ms < CALL_MS_MAX * passes:
            break
        plain_ms = min(plain_ms, cpu_ms(lambda: json.loads(data)))
    else:
        assert shortest_ms < 2 * plain_ms * passes
