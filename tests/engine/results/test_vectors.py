import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedgrpc.engine.results.vectors import EncodedRows, Encoding, encode, shorten
from embedgrpc.libraries.arrays import FloatArray

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-4, 4, width=32)
    | st.floats(allow_nan=False, allow_infinity=False, width=32),
)
UNIT_ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-1, 1, width=32),
)


def bits_of(rows: FloatArray) -> list[list[int]]:
    """Return the numbers of rows as they are in memory."""
    return [
        [struct.unpack("<I", struct.pack("<f", one))[0] for one in row] for row in rows.tolist()
    ]


@given(rows=UNIT_ROWS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_shorter_vectors_have_unit_length(rows: FloatArray, data: st.DataObject) -> None:
    """Vectors are cut, then divided by their length or 1e-12, whichever is greater."""
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    unit = shorten(rows, dimensions=dimensions, normalize=True)
    kept = rows[:, :dimensions].astype(np.float64)
    lengths = np.sqrt((kept * kept).sum(axis=1, keepdims=True))
    # Squares of numbers below 1e-19 are 0 in float32, as in the reference.
    expected = np.where(lengths < 1e-15, 0, kept / np.maximum(lengths, 1e-12))
    near = (lengths > 1e-15).all(axis=1)
    assert unit.dtype == np.float32
    assert unit.shape == (len(rows), dimensions)
    np.testing.assert_allclose(unit[near], expected[near], rtol=1e-4, atol=1e-6)


@given(rows=ROWS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_shorter_vectors_are_left_as_they_are(rows: FloatArray, data: st.DataObject) -> None:
    """Without normalization, the first numbers are kept to the bit."""
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    kept = shorten(rows, dimensions=dimensions, normalize=False)
    assert kept.flags.c_contiguous
    assert bits_of(kept) == bits_of(rows[:, :dimensions])


def test_zeros_keep_no_direction() -> None:
    """A row of zeros stays one."""
    assert shorten(np.zeros((1, 4), np.float32), dimensions=2, normalize=True).tolist() == [[0, 0]]


def as_sent(encoded: EncodedRows, row: int) -> bytes:
    """Return the bytes of one vector."""
    assert encoded.data.flags.c_contiguous
    sent: bytes = encoded.data[row].tobytes()
    return sent


@given(rows=ROWS)
@settings(max_examples=100, deadline=None)
def test_float32_is_what_the_model_said(rows: FloatArray) -> None:
    """FLOAT32 is every number in little-endian order, to the bit."""
    encoded = encode(rows, Encoding.FLOAT32)
    assert (encoded.dimensions, encoded.scales) == (rows.shape[1], None)
    for position, row in enumerate(rows.tolist()):
        assert as_sent(encoded, position) == struct.pack(f"<{len(row)}f", *row)


def test_float32_of_a_slice() -> None:
    """Rows that are not contiguous are sent as if they were."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)[:, :3]
    assert as_sent(encode(rows, Encoding.FLOAT32), 1) == struct.pack("<3f", 4, 5, 6)


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_float16_is_clipped(rows: FloatArray) -> None:
    """FLOAT16 is the nearest half, clipped to its largest number."""
    encoded = encode(rows, Encoding.FLOAT16)
    for position, row in enumerate(rows.tolist()):
        clipped = [min(max(one, -65504.0), 65504.0) for one in row]
        assert as_sent(encoded, position) == struct.pack(f"<{len(row)}e", *clipped)


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_bfloat16_is_the_nearest(rows: FloatArray) -> None:
    """BFLOAT16 is the upper half of a float32, rounded to nearest, ties to even, and clipped."""
    encoded = encode(rows, Encoding.BFLOAT16)
    for position, row in enumerate(bits_of(rows)):
        rounded = [(bits + 0x7FFF + (bits >> 16 & 1)) >> 16 for bits in row]
        upper = [half - 1 if half & 0x7FFF == 0x7F80 else half for half in rounded]
        assert as_sent(encoded, position) == struct.pack(f"<{len(row)}H", *upper)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(0x3F808000, 0x3F80), (0x3F818000, 0x3F82), (0x3F808001, 0x3F81), (0xBF808000, 0xBF80)],
)
def test_bfloat16_ties_go_to_even(bits: int, expected: int) -> None:
    """A number half way between two is rounded to the even one, on both sides of zero."""
    row = np.array([[bits]], np.uint32).view(np.float32)
    assert encode(row, Encoding.BFLOAT16).data.tolist() == [[expected]]


@given(rows=ROWS)
@settings(max_examples=300, deadline=None)
def test_int8_is_within_half_a_step(rows: FloatArray) -> None:
    """INT8 numbers times the scale are the vector, each within half a step."""
    encoded = encode(rows, Encoding.INT8)
    assert encoded.scales is not None
    assert encoded.scales.dtype == np.float32
    for position, row in enumerate(rows.astype(np.float64)):
        steps = struct.unpack(f"<{len(row)}b", as_sent(encoded, position))
        assert all(-127 <= step <= 127 for step in steps)
        scale = float(encoded.scales[position])
        largest = np.abs(row).max()
        # Below 2**-126 float32 loses digits: no scale is exact there.
        slack = 128 * 2**-149
        assert scale == pytest.approx(largest / 127, rel=1e-6, abs=2**-149)
        error = np.abs(np.array(steps) * scale - row).max()
        assert error <= scale / 2 * (1 + 1e-5) + largest * 1e-6 + slack


def test_int8_of_zeros() -> None:
    """A row of zeros has the scale 0, even beside one that does not."""
    encoded = encode(np.array([[0, 0], [2, -1]], np.float32), Encoding.INT8)
    assert encoded.data.tolist() == [[0, 0], [127, -64]]
    assert encoded.scales is not None
    assert encoded.scales.tolist() == pytest.approx([0, 2 / 127])


def test_int8_of_the_smallest_numbers() -> None:
    """Numbers so small that their scale loses digits are clipped, and keep their sign."""
    row = np.array([[190, -190]], np.float32) * np.float32(2**-149)
    first, second = encode(row, Encoding.INT8).data[0].tolist()
    assert (first, second) == (127, -127)


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_ubinary_is_the_signs(rows: FloatArray) -> None:
    """UBINARY has a bit per number, most significant first, padded with zeros."""
    encoded = encode(rows, Encoding.UBINARY)
    assert encoded.dimensions == rows.shape[1]
    for position, row in enumerate(rows.tolist()):
        bits = "".join("1" if one > 0 else "0" for one in row)
        whole = bits.ljust((len(bits) + 7) // 8 * 8, "0")
        expected = bytes(int(whole[start : start + 8], 2) for start in range(0, len(whole), 8))
        assert as_sent(encoded, position) == expected


def test_ubinary_fills_the_last_byte() -> None:
    """Ten numbers take two bytes; zero and minus zero are not positive."""
    rows = np.array([[1, -1, 0, -0.0, 2, 3, -4, 5, 6, 7]], np.float32)
    assert encode(rows, Encoding.UBINARY).data.tolist() == [[0b10001101, 0b11000000]]
