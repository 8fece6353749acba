"""One request of tei.v1, a unary call or a message of a stream, and what it took."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from embedgrpc.engine.work import Call
from embedgrpc.server.contract.field_checks import check_enum
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import common_pb2

_METADATA_FIELD = 2
_NS = 1_000_000_000
_MS_OF_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class TeiRequest:
    """A request and what it belongs to.

    Attributes:
        message: The message.
        served: The model.
        settings: The server's settings.
        call: For whom.
        began_ns: When it arrived, in nanoseconds of the monotonic clock.
        max_response_bytes: The largest response that the client accepts.
        reserve: Waits for room for a response of so many bytes, before it is made.
    """

    message: Any
    served: ServedModel
    settings: Settings
    call: Call
    began_ns: int
    max_response_bytes: int
    reserve: Callable[[int], Awaitable[None]]

    def took(self, *, characters: int, tokens: int) -> tei_pb2.Metadata:
        """Return what the request took until now.

        Args:
            characters: Those of its inputs.
            tokens: Those that the model read.
        """
        times = self.call.times
        return tei_pb2.Metadata(
            compute_chars=characters,
            compute_tokens=tokens,
            total_time_ns=time.monotonic_ns() - self.began_ns,
            tokenization_time_ns=round(times.tokenize_s * _NS),
            queue_time_ns=round(times.queue_s * _NS),
            inference_time_ns=round(times.run_s * _NS),
        )


@dataclass(frozen=True, slots=True)
class TeiAnswer:
    """A response.

    Attributes:
        wire: The message in wire form, without its metadata.
        metadata: What it took; None for methods that do not say it.
    """

    wire: bytes
    metadata: tei_pb2.Metadata | None = None

    def to_wire(self) -> bytes:
        """Return the whole message in wire form."""
        if self.metadata is None:
            return self.wire
        return self.wire + delimited(_METADATA_FIELD, self.metadata.SerializeToString())


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose options were read.

    Attributes:
        answer_bytes: The most bytes of its response.
        run: Makes the response.
    """

    answer_bytes: int
    run: Callable[[], Awaitable[TeiAnswer]]


# Reads a request of a method. Raises an EngineError, as `Prepared.run` does.
Prepare = Callable[[TeiRequest], Prepared]


def headers_of(metadata: tei_pb2.Metadata, *, device: str) -> tuple[tuple[str, str], ...]:
    """Return what a request took as its initial metadata: times in whole milliseconds."""
    return (
        ("x-compute-type", "gpu" if device == "cuda" else device),
        ("x-compute-time", str(metadata.total_time_ns // _MS_OF_NS)),
        ("x-compute-characters", str(metadata.compute_chars)),
        ("x-compute-tokens", str(metadata.compute_tokens)),
        ("x-total-time", str(metadata.total_time_ns // _MS_OF_NS)),
        ("x-tokenization-time", str(metadata.tokenization_time_ns // _MS_OF_NS)),
        ("x-queue-time", str(metadata.queue_time_ns // _MS_OF_NS)),
        ("x-inference-time", str(metadata.inference_time_ns // _MS_OF_NS)),
    )


def read_truncation(message: Any) -> common_pb2.Truncation:
    """Return the contract's truncation.

    Raises:
        InvalidRequestError: The direction is unknown.
    """
    check_enum(
        tei_pb2.TruncationDirection, message.truncation_direction, field="truncation_direction"
    )
    if not message.truncate:
        return common_pb2.TRUNCATION_NONE
    if message.truncation_direction == tei_pb2.TRUNCATION_DIRECTION_LEFT:
        return common_pb2.TRUNCATION_START
    return common_pb2.TRUNCATION_END
