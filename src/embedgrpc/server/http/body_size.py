"""Limits how many values a JSON body has before it is decoded.

Decoding holds the interpreter lock, on any thread. A byte of a text costs a nanosecond, but an
empty list 300: four megabytes of them would hold up all other calls for 400 ms. So the values of a
body are counted first, by the punctuation outside its strings.
"""

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.libraries.arrays import BoolArray, IntArray

# A document as an object with its text and six other keys has no more.
_VALUES_OF_AN_INPUT = 16
# A number is decoded in 20 ns. Lists of numbers are token ids: so many for each input.
_NUMBERS_OF_AN_INPUT = 128
# Options, and the body itself.
_OTHER_VALUES = 1024
_CHUNK_BYTES = 64 * 1024

_QUOTE, _BACKSLASH, _COMMA, _MINUS, _SPACE = b'"\\,- '
_ZERO, _NINE = b"09"
_LIST, _OBJECT, _COLON = b"[{:"


def check_values(data: bytes, *, max_inputs: int) -> None:
    """Refuse a body with more values than a request needs. Call it off the event loop if large.

    What is not JSON is left to the decoder, which refuses it.

    Args:
        data: The body.
        max_inputs: The most texts of a request.

    Raises:
        InvalidRequestError: It has too many values.
    """
    values_max = _VALUES_OF_AN_INPUT * max_inputs + _OTHER_VALUES
    numbers_max = _NUMBERS_OF_AN_INPUT * max_inputs
    if len(data) <= values_max:
        return
    strings = _Strings()
    values = numbers = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, len(data) - start)
        # Two more bytes show what comes after the last comma. [size + 2 or more] uint8.
        more = np.frombuffer(data[start : start + size + 2] + b"  ", np.uint8)
        chunk = more[:size]
        commas = chunk == _COMMA
        quotes = strings.quotes_of(chunk)
        before_number = strings.count_outside(commas & _before_numbers(more, size), quotes)
        marks = commas | (chunk == _COLON) | (chunk == _LIST) | (chunk == _OBJECT)
        values += strings.count_outside(marks, quotes) - before_number
        numbers += before_number
        strings.pass_over(quotes)
        for count, limit, what in (
            (values, values_max, "values"),
            (numbers, numbers_max, "numbers"),
        ):
            if count > limit:
                raise InvalidRequestError(
                    f"the body has more than {limit} {what}: send fewer inputs",
                    metadata={"label": "TOO_MANY_FIELDS", "maxFields": str(limit)},
                )


def _before_numbers(data: NDArray[np.uint8], size: int) -> BoolArray:
    """Return after which bytes a number begins, perhaps behind a space; bool [size]."""
    begins = ((data >= _ZERO) & (data <= _NINE)) | (data == _MINUS)
    after_space: BoolArray = (data[1 : size + 1] == _SPACE) & begins[2 : size + 2]
    after_space |= begins[1 : size + 1]
    return after_space


class _Strings:
    """Knows which parts of a body are strings, chunk by chunk."""

    def __init__(self) -> None:
        self._inside = False
        # Backslashes at the end of the last chunk.
        self._backslashes = 0

    def quotes_of(self, chunk: NDArray[np.uint8]) -> IntArray:
        """Return where strings begin and end: quotes after an even number of backslashes."""
        quotes = np.flatnonzero(chunk == _QUOTE)
        backslashes = chunk == _BACKSLASH
        before, self._backslashes = self._backslashes, 0
        if not before and not backslashes.any():
            return quotes
        # A run of backslashes ends with each byte; where it began, counted in the chunk.
        places = np.arange(len(chunk), dtype=np.int32)
        last_other = np.maximum.accumulate(np.where(backslashes, np.int32(-1 - before), places))
        self._backslashes = len(chunk) - 1 - int(last_other[-1])
        # The run before a quote has no backslash where the byte before it is another.
        last = np.where(quotes > 0, last_other[quotes - 1], -1 - before)
        unescaped: IntArray = quotes[(quotes - 1 - last) % 2 == 0]
        return unescaped

    def count_outside(self, marks: BoolArray, quotes: IntArray) -> int:
        """Count the marks of a chunk that are outside strings.

        Args:
            marks: bool [chunk].
            quotes: int64 [quotes]; where strings begin and end.
        """
        # No mark is a quote, so it does not matter to which side a quote belongs.
        up_to = np.cumsum(marks, dtype=np.int32)
        edges = np.concatenate(([0], up_to[quotes], up_to[-1:]))
        return int(np.diff(edges)[self._inside :: 2].sum())

    def pass_over(self, quotes: IntArray) -> None:
        """Go on to the next chunk."""
        self._inside ^= len(quotes) % 2 == 1
