"""Reads the status and the details of failed calls."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call ended.

    Attributes:
        code: Its status.
        details: The message for people.
        reason: Of its ErrorInfo; empty where there is none.
        metadata: Of its ErrorInfo.
        fields: Of its BadRequest.
        field_reasons: Why each of them is at fault.
        retry_delay_s: Of its RetryInfo; None where there is none.
        pushback_ms: The header that official clients obey; empty where there is none.
        trailing: All of the trailing metadata, printed.
    """

    code: grpc.StatusCode
    details: str
    reason: str
    metadata: dict[str, str]
    fields: tuple[str, ...]
    field_reasons: tuple[str, ...]
    retry_delay_s: float | None
    pushback_ms: str
    trailing: str

    @property
    def label(self) -> str:
        """The finer name of the reason."""
        return self.metadata.get("label", "")


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Return the details of a failed call."""
    trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    by_key: dict[str, Any] = dict(trailing)
    status = status_pb2.Status.FromString(by_key.get("grpc-status-details-bin", b""))
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        has_retry |= detail.Unpack(retry)
    if status.details:
        number, _ = error.code().value
        assert status.code == number
        assert info.domain == "embedgrpc"
    return Failure(
        code=error.code(),
        details=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        fields=tuple(violation.field for violation in bad.field_violations),
        field_reasons=tuple(violation.reason for violation in bad.field_violations),
        retry_delay_s=retry.retry_delay.ToMicroseconds() / 1e6 if has_retry else None,
        pushback_ms=by_key.get("grpc-retry-pushback-ms", ""),
        trailing=repr(trailing),
    )


async def failure_of(call: Awaitable[Any]) -> Failure:
    """Await a call that must fail; return the failure."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return read_failure(caught.value)
