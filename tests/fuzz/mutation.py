"""Changes bytes and values at random, often into something almost valid."""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

# Numbers near the limits of sizes and counts.
NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 4096, 65535, 65536, 1 << 20,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, 1 << 70, 10**9, -1, -2, -(1 << 31), -(1 << 63),
)  # fmt: skip
_LONGEST = 1 << 20


def some(random: Random) -> int:
    """Return a number of changes: mostly one or two, rarely many."""
    count = 1
    while count < 16 and random.random() < 0.5:
        count += 1
    return count


def mutate_bytes(random: Random, content: bytes, words: Sequence[bytes] = (b"\0",)) -> bytes:
    """Return the content with some bytes changed.

    Args:
        random: The random numbers.
        content: The bytes.
        words: Bytes with a meaning in this format.
    """
    changed = bytearray(content)
    for _ in range(some(random)):
        random.choice(_BYTE_CHANGES)(random, changed, words)
    return bytes(changed[: max(_LONGEST, len(content))])


def _flip(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    if content:
        content[random.randrange(len(content))] = random.choice((0, 1, 127, 128, 254, 255))


def _overwrite_number(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    size = random.choice((2, 4, 8))
    if len(content) >= size:
        place = random.randrange(len(content) - size + 1)
        number = random.choice(NUMBERS) % (1 << 8 * size)
        content[place : place + size] = number.to_bytes(size, random.choice(("little", "big")))


def _add_to_number(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    if content:
        place = random.randrange(len(content))
        content[place] = (content[place] + random.randrange(-16, 17)) % 256


def _delete(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    place = random.randrange(len(content) + 1)
    del content[place : place + random.choice((1, 1, 2, 4, 16, 256))]


def _insert(random: Random, content: bytearray, words: Sequence[bytes]) -> None:
    place = random.randrange(len(content) + 1)
    content[place:place] = random.choice(words)


def _overwrite_word(random: Random, content: bytearray, words: Sequence[bytes]) -> None:
    word = random.choice(words)
    place = random.randrange(len(content) + 1)
    content[place : place + len(word)] = word


def _repeat(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    place = random.randrange(len(content) + 1)
    part = content[place : place + random.randrange(1, 33)]
    content[place:place] = part * random.choice((1, 1, 2, 8, 64, 1024))


def _move(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    size = random.randrange(1, 33)
    source, target = random.randrange(len(content) + 1), random.randrange(len(content) + 1)
    part = content[source : source + size]
    content[target : target + len(part)] = part


def _cut(random: Random, content: bytearray, _: Sequence[bytes]) -> None:
    if random.random() < 0.2:
        del content[random.randrange(len(content) + 1) :]


_BYTE_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip, _flip, _overwrite, _overwrite_number, _add_to_number, _delete, _insert,
    _overwrite_word, _repeat, _move, _cut,
)  # fmt: skip

_VALUES: tuple[Any, ...] = (
    None, True, False, *NUMBERS, 0.0, -0.5, 1.5, 1e9, 1e308, float("nan"), float("inf"), 10**400,
    "", "a", "0", "x" * 5000, "..", "../..", "/etc/passwd", "a/b", "\0", "\n", "\ud800", "\u202e",
    "null", "true", "[PAD]", "<s>", [], {}, [[]], [{}], {"a": {}}, [None], [0], [""],
)  # fmt: skip


def mutate_json(random: Random, document: Any, others: Sequence[Any] = ()) -> bytes:
    """Change some values of a document and return it as JSON, rarely with some bytes changed.

    Args:
        random: The random numbers.
        document: The result of `json.loads`. It is changed, so pass a copy.
        others: Documents whose values may be put into this one.
    """
    holder = [document]
    for _ in range(some(random)):
        _change_value(random, holder, others)
    content = json.dumps(holder[0] if holder else None).encode()
    if random.random() < 0.02:
        deep = random.choice((b"[", b'{"a":')) * random.choice((10, 500, 2000, 100_000))
        content = content.replace(b"null", deep, 1)
    if random.random() < 0.1:
        content = mutate_bytes(random, content, _JSON_WORDS)
    return content


_JSON_WORDS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"NaN", b"Infinity", b"1e999",
    b"-", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"9" * 5000, b"//", b" ",
)  # fmt: skip


def _change_value(random: Random, holder: Any, others: Sequence[Any]) -> None:
    """Change one value somewhere in a list or a dictionary."""
    places = _places(random, holder)
    if not places:
        holder.append(_new_value(random))  # the document itself was deleted
        return
    key = random.choice(places)
    present = holder[key]
    if isinstance(present, (dict, list)) and present and random.random() < 0.9:
        _change_value(random, present, others)
        return
    chance = random.random()
    if chance < 0.5:
        holder[key] = _new_value(random)
    elif chance < 0.65 and isinstance(present, (int, float)):
        holder[key] = present + random.choice((1, -1))
        if chance < 0.6:
            holder[key] = present * random.choice((2, -1, 1000, 10**9))
    elif chance < 0.75 and others:
        holder[key] = _pick(random, random.choice(others))
    elif chance < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random.choice((*list(holder)[:64], "", "a", "type"))] = present
    else:
        holder.insert(key, present)


def _new_value(random: Random) -> Any:
    # A copy, because later changes must not affect shared values.
    return copy.deepcopy(random.choice(_VALUES))


def _places(random: Random, holder: Any) -> Sequence[Any]:
    if isinstance(holder, list):
        return range(len(holder))
    keys = list(holder)
    # The entries of a large table are much alike.
    return keys if len(keys) < 64 else random.sample(keys, 64)


def _pick(random: Random, document: Any) -> Any:
    while isinstance(document, (dict, list)) and document and random.random() < 0.8:
        document = document[random.choice(_places(random, document))]
    return copy.deepcopy(document)
