"""Writes vectors and other long lists as JSON.

Each entry is written by a call of its own: writing holds the interpreter lock, and a large answer
at once would hold it for tens of milliseconds.
"""

from binascii import b2a_base64
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.server.services.embed_batch import EmbeddedBatch


def dense_of(embedded: EmbeddedBatch) -> FloatArray:
    """Return the vectors of a batch whose texts all succeeded; float32 [texts, dimensions]."""
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.vectors is not None  # noqa: S101, PT018 - dense was asked for, and no text failed
    return embeddings.vectors


def number_rows(data: NDArray[np.generic]) -> Iterator[bytes]:
    """Write each row as a list of numbers.

    Those of float32 are the shortest that are equal as float32: half as long as of float64.

    Args:
        data: Any dtype [rows, columns], finite.
    """
    return (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in data)


def number_lists(data: NDArray[np.generic]) -> bytes:
    """Write rows as a list of lists of numbers.

    Args:
        data: Any dtype [rows, columns], finite.
    """
    return b"[%s]" % b",".join(number_rows(data))


def json_list(values: Iterable[Any]) -> bytes:
    """Write a list."""
    return b"[%s]" % b",".join(map(msgspec.json.encode, values))


def base64_rows(data: NDArray[np.generic]) -> Iterator[bytes]:
    """Write the bytes of each row as a string in base64.

    Args:
        data: Any dtype [rows, columns], little-endian.
    """
    whole, size = data.tobytes(), data.shape[1] * data.itemsize
    return (
        b'"%s"' % b2a_base64(whole[start : start + size], newline=False)
        for start in range(0, len(whole), size)
    )
