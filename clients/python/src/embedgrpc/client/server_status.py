"""What a server and its models do now, as AdminService tells it."""

import datetime as dt
from dataclasses import dataclass

from google.protobuf import duration_pb2

from embedgrpc.client.enums import enum_name
from embedgrpc.v1 import admin_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What a model does now.

    Attributes:
        id: Its name in requests.
        aliases: Its other names.
        source: Where its files come from.
        state: "loading" or "ready"; "failed" for good, or "unavailable" for now.
        closing: Whether new calls do not find it any more.
        problem: Why it could not be loaded; empty unless it failed.
        fingerprint: The id of the embedding space; empty until it is loaded.
        load_s: How long loading it took, in seconds.
        weight_bytes: The size of its weights; 0 where that is unknown.
        open_calls: The open calls that use it.
        queued_inputs: Inputs that wait or run.
        queued_tokens: Tokens of these.
        queue_s: How long they would take at the speed of recent batches, in seconds.
        overloaded: Whether calls are refused because more work comes than can be done.
    """

    id: str
    aliases: tuple[str, ...]
    source: str
    state: str
    closing: bool
    problem: str
    fingerprint: str
    load_s: float
    weight_bytes: int
    open_calls: int
    queued_inputs: int
    queued_tokens: int
    queue_s: float
    overloaded: bool


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """How the last reload of the settings ended.

    Attributes:
        end_time: When.
        problem: Why nothing has changed; empty if the settings were applied.
        needs_restart: The settings that have changed and need a restart.
    """

    end_time: dt.datetime
    problem: str
    needs_restart: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a server does now.

    Attributes:
        version: The version of the software.
        contract_version: The version of the contract.
        start_time: When the process started.
        uptime_s: How long ago that was, on the server's clock, in seconds.
        open_calls: The open calls on all connections.
        overloaded: Whether a model is overloaded.
        resident_bytes: Memory that the process occupies.
        models: The models that are served, the default first; then those that are being loaded or
            closed.
        last_reload: How the last reload of the settings ended; None before the first.
    """

    version: str
    contract_version: str
    start_time: dt.datetime
    uptime_s: float
    open_calls: int
    overloaded: bool
    resident_bytes: int
    models: tuple[ModelStatus, ...]
    last_reload: ReloadStatus | None


def decode_status(message: pb.ServerStatus) -> ServerStatus:
    """Return the status of a server."""
    last = message.last_reload
    return ServerStatus(
        version=message.version,
        contract_version=message.contract_version,
        start_time=message.start_time.ToDatetime(dt.timezone.utc),
        uptime_s=_seconds(message.uptime),
        open_calls=message.open_calls,
        overloaded=message.overloaded,
        resident_bytes=message.resident_bytes,
        models=tuple(map(decode_model_status, message.models)),
        last_reload=ReloadStatus(
            end_time=last.end_time.ToDatetime(dt.timezone.utc),
            problem=last.problem,
            needs_restart=tuple(last.needs_restart),
        )
        if message.HasField("last_reload")
        else None,
    )


def decode_model_status(message: pb.ModelStatus) -> ModelStatus:
    """Return the status of a model."""
    return ModelStatus(
        id=message.id,
        aliases=tuple(message.aliases),
        source=message.source,
        state=enum_name(model_service_pb2.ModelState, message.state),
        closing=message.closing,
        problem=message.problem,
        fingerprint=message.fingerprint,
        load_s=_seconds(message.load_duration),
        weight_bytes=message.weight_bytes,
        open_calls=message.open_calls,
        queued_inputs=message.queued_inputs,
        queued_tokens=message.queued_tokens,
        queue_s=_seconds(message.queue_duration),
        overloaded=message.overloaded,
    )


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
