"""What logs and metrics say of one call: filled while it runs, and read once when it ends.

It holds names, counts and times; never a text, a vector or a key.
"""

import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, get_args

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.work import Call
from embedgrpc.server.telemetry.running_call import RUNNING

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from embedgrpc.server.loading.catalog import ServedModel

# The protocol of a call.
Door = Literal["grpc", "tei", "kserve", "http"]
DOORS: Final[tuple[Door, ...]] = get_args(Door)

_DOORS: Final[tuple[tuple[str, Door], ...]] = (("/tei.v1.", "tei"), ("/inference.", "kserve"))
# Services and methods that only say how the server is: gRPC's own, and those of KServe.
_PROBES: Final = (
    "/grpc.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
)
# Of more jobs than most calls have, the first tell enough of the times.
_WORKS_MAX: Final = 8
_KNOWN_METHODS_MAX: Final = 1024
# Source: W3C Trace Context.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


class CallRecord:
    """One call. On the event loop.

    Attributes:
        door: Its protocol.
        method: The full gRPC method, or the method and path of a route; empty for an unknown one.
        is_probe: Whether it only asks for the health or the methods of the server.
        models: The models that it named, each once.
        inputs: Texts, pairs, documents or other inputs that came.
        failed_inputs: Those that got an error of their own in a call that goes on.
        tokens: Those that models read.
        works: What ran for it, with its times; the first of many.
        status: The name of the gRPC status, or the number of the HTTP status. Set when it ends.
        reason: A name of `ErrorReason`; empty for success, and where gRPC ended it.
        label: The finer label of the reason; may be empty.
        began_s: When it began, on the monotonic clock.
        total_s: How long it took. Set when it ends.
        span: Its span, where traces are exported.
        metadata: Returns what its client sent; None when it has ended.
    """

    __slots__ = (
        "began_s",
        "door",
        "failed_inputs",
        "inputs",
        "is_probe",
        "label",
        "metadata",
        "method",
        "models",
        "reason",
        "span",
        "status",
        "tokens",
        "total_s",
        "works",
    )

    def __init__(self, door: Door, method: str, *, is_probe: bool = False) -> None:
        self.door: Door = door
        self.method = method
        self.is_probe = is_probe
        self.models: tuple[ServedModel, ...] = ()
        self.inputs = self.failed_inputs = self.tokens = 0
        self.works: tuple[Call, ...] = ()
        self.status = self.reason = self.label = ""
        self.began_s = time.monotonic()
        self.total_s = 0.0
        self.span: SpanContext | None = None
        self.metadata: Callable[[], Iterable[tuple[str, str | bytes]] | None] | None = None

    @classmethod
    def of_grpc(cls, method: str) -> "CallRecord":
        """Return the record of a gRPC call."""
        door, is_probe = _kind_of(method)
        return cls(door, method, is_probe=is_probe)

    @property
    def succeeded(self) -> bool:
        """Whether the client got what it asked for."""
        return self.status == "OK" or (self.door == "http" and self.status < "4")

    @property
    def queue_s(self) -> float:
        """The mean time that its jobs waited for their first batch, in seconds."""
        jobs = sum(one.times.jobs for one in self.works)
        return sum(one.times.queue_s for one in self.works) / jobs if jobs else 0.0

    def trace_fields(self) -> dict[str, str]:
        """Return the ids of its trace and span for the log; the trace of its client without one."""
        if self.span is not None and self.span.is_valid:
            return {
                "trace_id": f"{self.span.trace_id:032x}",
                "span_id": f"{self.span.span_id:016x}",
            }
        for key, value in (self.metadata() if self.metadata is not None else None) or ():
            if key == "traceparent" and isinstance(value, str):
                match = _TRACEPARENT.fullmatch(value)
                return {"trace_id": match[1]} if match else {}
        return {}

    def fail(self, error: EngineError, status: str) -> None:
        """Record the failure that the client gets."""
        self.status = status
        self.reason = error.reason.value
        self.label = error.metadata.get("label", "")

    def leave(self, deadline_s: float | None) -> None:
        """Record that the client, or its deadline, ended the call.

        Args:
            deadline_s: The seconds that were left until the deadline; None without one.
        """
        if not self.status:
            late = deadline_s is not None and deadline_s <= 0
            self.status = "DEADLINE_EXCEEDED" if late else "CANCELLED"


@lru_cache(_KNOWN_METHODS_MAX)
def _kind_of(method: str) -> tuple[Door, bool]:
    """Return the protocol of a gRPC method, and whether it is a probe."""
    doors = (door for prefix, door in _DOORS if method.startswith(prefix))
    return next(doors, "grpc"), method.startswith(_PROBES)


def set_current_record(record: CallRecord) -> None:
    """Make a record that of the running task and of the tasks that it starts."""
    RUNNING.set(record)


def current_record() -> CallRecord | None:
    """Return the record of the running call."""
    record = RUNNING.get()
    # Nothing else is ever there.
    return record if isinstance(record, CallRecord) else None


def note_inputs(count: int) -> None:
    """Count inputs of the running call, before they are checked."""
    record = current_record()
    if record is not None:
        record.inputs += count


def note_failed_inputs(count: int) -> None:
    """Count inputs of the running call that got an error of their own."""
    record = current_record()
    if record is not None:
        record.failed_inputs += count


def note_model(model: "ServedModel") -> None:
    """Record that the running call named a model."""
    record = current_record()
    if record is not None and model not in record.models:
        record.models += (model,)


def note_work(call: Call) -> None:
    """Record work of the running call."""
    record = current_record()
    if record is not None and len(record.works) < _WORKS_MAX:
        record.works += (call,)
