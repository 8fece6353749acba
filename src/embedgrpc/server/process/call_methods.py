"""The methods and routes that a server serves, with the statuses that their calls can have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.caller import Proof, Service
from embedgrpc.server.calls.method_needs import need_of
from embedgrpc.server.rpc.errors import status_code
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_figures import CallMethod
from embedgrpc.server.telemetry.call_record import CallRecord, Door
from embedgrpc.v1 import (
    classify_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
    rerank_service_pb2,
    tokenizer_service_pb2,
)

_OWN: Final = (
    embedding_service_pb2,
    rerank_service_pb2,
    classify_service_pb2,
    model_service_pb2,
    tokenizer_service_pb2,
)
# The statuses of calls that the client, or its deadline, ended, and of methods that are not served.
_LEFT: Final[Mapping[Door, Sequence[str]]] = {
    "grpc": ("CANCELLED", "DEADLINE_EXCEEDED"),
    "tei": ("CANCELLED", "DEADLINE_EXCEEDED"),
    "kserve": ("CANCELLED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"),
}
# No client sees it: proxies have this number in their logs.
_CLIENT_LEFT: Final = "499"


def call_methods(settings: Settings) -> Iterator[CallMethod]:
    """Return what is served, but for probes."""
    services = [one for module in _OWN for one in module.DESCRIPTOR.services_by_name.values()]
    # Imported only where they are used: they cost time and memory.
    if settings.admin:
        from embedgrpc.v1 import admin_service_pb2  # noqa: PLC0415 - see above

        services += admin_service_pb2.DESCRIPTOR.services_by_name.values()
    if settings.tei_model:
        from embedgrpc.tei.v1 import tei_pb2  # noqa: PLC0415 - see above

        services += tei_pb2.DESCRIPTOR.services_by_name.values()
    if settings.kserve:
        from embedgrpc.server.kserve.services import describe_services  # noqa: PLC0415 - see above

        services += describe_services()
    yield from _grpc_methods(services)
    if settings.http_address:
        yield from _routes()


def running_services(methods: Iterable[CallMethod]) -> Mapping[str, Service | None]:
    """Return the methods that run a model, with what it does; None where that depends on it."""
    running = (Service.EMBED, Service.RERANK, Service.CLASSIFY)
    return {
        one.name: one.service
        for one in methods
        if one.service in running or (one.service is None and one.name.endswith("/ModelInfer"))
    }


def proofs_of(settings: Settings) -> Sequence[Proof]:
    """Return how callers prove who they are."""
    configured = (
        (settings.api_keys_file, Proof.API_KEY),
        (settings.jwt_issuer, Proof.TOKEN),
        (settings.certificate_callers_file, Proof.CERTIFICATE),
    )
    return [proof for setting, proof in configured if setting] or [Proof.ANONYMOUS]


def _grpc_methods(services: Iterable[Any]) -> Iterator[CallMethod]:
    statuses = {reason: status_code(_error(reason)).name for reason in Reason}
    for service in services:
        for method in service.methods:
            name = f"/{service.full_name}/{method.name}"
            record = CallRecord.of_grpc(name)
            if record.is_probe:
                continue
            need = need_of(name)
            yield CallMethod(
                record.door,
                name,
                need.service,
                names_model=True,
                lists_models=need.service is Service.MODELS or need.scope is not None,
                success="OK",
                left=_LEFT[record.door],
                statuses=statuses,
                wrong_task=statuses[Reason.UNSUPPORTED],
            )


def _routes() -> Iterator[CallMethod]:
    from embedgrpc.server.http.dialects.all_routes import all_routes  # noqa: PLC0415 - as above
    from embedgrpc.server.http.failures import STATUSES  # noqa: PLC0415 - as above

    wrong_task = _error(Reason.UNSUPPORTED)
    wrong_task.metadata["label"] = "WRONG_TASK"
    for route in all_routes():
        if route.is_open:
            continue
        statuses = {
            reason: str(route.errors(_error(reason), status)[0])
            for reason, status in STATUSES.items()
        }
        yield CallMethod(
            "http",
            f"{route.method} {route.path}",
            route.need.service,
            names_model=route.body is not None or route.need.service is Service.MODELS,
            lists_models=route.body is None,
            success="200",
            left=(_CLIENT_LEFT,),
            statuses=statuses,
            wrong_task=str(route.errors(wrong_task, STATUSES[Reason.UNSUPPORTED])[0]),
        )
    # What is no route, or no request.
    plain = {reason: str(status) for reason, status in STATUSES.items()}
    for status in ("400", "404", "405"):
        yield CallMethod(
            "http",
            "",
            None,
            names_model=False,
            lists_models=True,
            success="204",
            left=(),
            statuses={**plain, Reason.INVALID_REQUEST: status},
            wrong_task="",
        )


def _error(reason: Reason) -> EngineError:
    error = EngineError("")
    error.reason = reason
    return error
