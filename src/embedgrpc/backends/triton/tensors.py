"""Converts arrays to the tensors of the protocol, and back."""

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.arrays import FloatArray, IntArray

_SENT = {"INT64": "<i8", "INT32": "<i4", "BOOL": "?", "FP32": "<f4", "FP16": "<f2"}
# BF16 is the upper half of an FP32.
_RECEIVED = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "BF16": "<u2"}
_TYPED_CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents"}


def encode(values: IntArray, datatype: str) -> bytes:
    """Encode integers in the type of an input.

    Raises:
        BackendError: A number is too large for the type.
    """
    if datatype == "INT32" and values.size and values.max() > np.iinfo(np.int32).max:
        raise BackendError("a token id is too large for an input of type INT32")
    return np.ascontiguousarray(values, dtype=_SENT[datatype]).tobytes()


def encode_texts(ids: IntArray, mask: IntArray) -> bytes:
    """Encode texts, given as bytes of UTF-8, for an input of type BYTES.

    The rest of a character that was cut is dropped.

    Args:
        ids: int64 [batch, bytes].
        mask: int64 [batch, bytes]; 0 for padding.
    """
    elements = []
    for row, used in zip(ids, mask, strict=True):
        text = row[used != 0].astype(np.uint8).tobytes().decode("utf-8", "ignore").encode()
        elements.append(struct.pack("<I", len(text)) + text)
    return b"".join(elements)


def decode(tensor: Any, raw: bytes | None) -> FloatArray:
    """Decode an output to float32.

    Args:
        tensor: The output's InferOutputTensor.
        raw: Its bytes; None if the values are in the tensor itself.

    Returns:
        float32 in the shape of the tensor; may be read-only.

    Raises:
        BackendError: The type is not supported, or shape and size do not fit.
    """
    shape = tuple(tensor.shape)
    if tensor.datatype not in _RECEIVED or any(size < 0 for size in shape):
        raise BackendError(
            f"the answer has an output of shape {list(shape)}, or of a type that cannot be read"
        )
    dtype = np.dtype(_RECEIVED[tensor.datatype])
    count = math.prod(shape)
    if raw is None:
        values = _read_contents(tensor)
        found, wanted, unit = len(values), count, "values"
    else:
        found, wanted, unit = len(raw), count * dtype.itemsize, "bytes"
        values = np.frombuffer(raw, dtype) if found == wanted else np.empty(0, dtype)
    if found != wanted:
        raise BackendError(
            f"the answer has an output of {found} {unit}, and shape {list(shape)} needs {wanted}"
        )
    if raw is not None and tensor.datatype == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32, copy=False).reshape(shape)


def _read_contents(tensor: Any) -> NDArray[Any]:
    """Return the values of an answer without raw bytes, as servers other than Triton send it."""
    if tensor.datatype not in _TYPED_CONTENTS:
        raise BackendError(f"the answer has an output of type {tensor.datatype} without raw bytes")
    contents = getattr(tensor.contents, _TYPED_CONTENTS[tensor.datatype])
    return np.array(contents, np.dtype(_RECEIVED[tensor.datatype]))
