"""AdminService: loads and unloads models, and says what the server does."""

import asyncio
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any, Protocol

from google.protobuf import json_format
from pydantic import ValidationError

from embedgrpc.engine.errors import InvalidRequestError, ModelNotFoundError, UnsupportedError
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.machine import process_usage
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.contract.limits import CONTRACT_VERSION
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.loading.catalog import Catalog, ServedModel
from embedgrpc.server.loading.changes import LastReload, ModelChange, ModelChangeError
from embedgrpc.server.services.models import STATES
from embedgrpc.server.settings.configuration import explain
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import admin_service_pb2, admin_service_pb2_grpc

# They have fields of their own.
_FIELDS = frozenset({"id", "source", "aliases"})


class ModelOperator(Protocol):
    """Changes the models of the server."""

    @property
    def loading(self) -> Collection[ServedModel]:
        """The models that are loaded beside the others now."""
        ...

    async def change(
        self, *, add: ModelSettings | None = None, remove: str = "", again: Collection[str] = ()
    ) -> ModelChange:
        """Serve other models; return when new calls find them.

        Args:
            add: One more; it takes the place of a model with the same name.
            remove: The name of one to leave out.
            again: The names of models to load again, even if their settings are the same.

        Raises:
            ModelChangeError: It is not possible; nothing has changed.
        """
        ...


class AdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Serves LoadModel, UnloadModel and GetStatus.

    Args:
        catalog: The models.
        operator: Changes them.
        calls: The open calls.
        last_reload: Returns how the last reload of the settings ended.
    """

    def __init__(
        self,
        catalog: Catalog,
        operator: ModelOperator,
        calls: OpenCalls,
        last_reload: Callable[[], LastReload | None],
    ) -> None:
        self._catalog = catalog
        self._operator = operator
        self._calls = calls
        self._last_reload = last_reload
        self._version = version("embedgrpc")
        self._started = time.time()
        # The wall clock may be set back.
        self._started_monotonic = time.monotonic()

    async def LoadModel(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.LoadModelRequest, context: Any
    ) -> admin_service_pb2.LoadModelResponse:
        """Load a model, or load it again."""
        del context
        wanted = self._read(request)
        try:
            await self._operator.change(add=wanted, again=(wanted.name,))
        except ModelChangeError as error:
            raise _not_changed(error) from None
        served = self._catalog.get(wanted.name)
        if served is None:
            raise _not_changed(ModelChangeError(f"{wanted.name} was unloaded meanwhile"))
        return admin_service_pb2.LoadModelResponse(model=self._describe(served))

    async def UnloadModel(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.UnloadModelRequest, context: Any
    ) -> admin_service_pb2.UnloadModelResponse:
        """Unload a model."""
        del context
        served = self._find(request.model)
        if served is self._catalog.default:
            raise _not_changed(
                ModelChangeError(
                    f"{served.id} is the default model: calls that name none would get another"
                )
            )
        try:
            change = await self._operator.change(remove=served.id)
        except ModelChangeError as error:
            raise _not_changed(error) from None
        if change.closed is not None:
            await asyncio.shield(change.closed)
        return admin_service_pb2.UnloadModelResponse()

    async def GetStatus(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.GetStatusRequest, context: Any
    ) -> admin_service_pb2.GetStatusResponse:
        """Describe what the server does."""
        del request, context
        models = [
            *(self._describe(one) for one in self._catalog),
            *(self._describe(one) for one in self._operator.loading),
            *(self._describe(one, closing=True) for one in self._catalog.draining),
        ]
        status = admin_service_pb2.ServerStatus(
            version=self._version,
            contract_version=CONTRACT_VERSION,
            open_calls=len(self._calls),
            overloaded=any(one.overloaded for one in models),
            resident_bytes=process_usage.resident_bytes(),
            models=models,
        )
        status.start_time.FromMilliseconds(round(self._started * 1000))
        uptime_s = time.monotonic() - self._started_monotonic
        status.uptime.FromMilliseconds(round(uptime_s * 1000))
        last = self._last_reload()
        if last is not None:
            status.last_reload.problem = last.problem
            status.last_reload.needs_restart.extend(last.needs_restart)
            status.last_reload.end_time.FromMilliseconds(round(last.ended_at * 1000))
        return admin_service_pb2.GetStatusResponse(status=status)

    def _read(self, request: admin_service_pb2.LoadModelRequest) -> ModelSettings:
        """Return the settings of the model to load.

        Raises:
            InvalidRequestError: They cannot be used.
            ModelNotFoundError: The request has no source, and its model is not served.
        """
        settings = json_format.MessageToDict(request.settings)
        if not request.source:
            if settings or request.aliases:
                raise InvalidRequestError(
                    "source is empty: without it the model keeps its settings and aliases",
                    field="source",
                )
            return self._find(request.model).settings
        for name in sorted(_FIELDS & settings.keys()):
            field = "model" if name == "id" else name
            raise InvalidRequestError(
                f"settings.{name} must not be set: the request has the field {field}",
                field=f"settings.{name}",
            )
        try:
            return ModelSettings(
                id=request.model, source=request.source, aliases=tuple(request.aliases), **settings
            )
        except ValidationError as error:
            name, problem = explain(error, ModelSettings)[0]
            field = _field_of(name)
            raise InvalidRequestError(f"{field}: {problem}", field=field) from None

    def _find(self, name: str) -> ServedModel:
        # Not by `find`: this call is none that the model must wait for.
        if not name:
            raise InvalidRequestError(
                "model is empty; an id or an alias is required", field="model"
            )
        served = self._catalog.get(name)
        if served is None:
            names = list_names([one.id for one in self._catalog])
            raise ModelNotFoundError(f"no model {show_name(name)}; served: {names}", field="model")
        return served

    def _describe(
        self, served: ServedModel, *, closing: bool = False
    ) -> admin_service_pb2.ModelStatus:
        loaded = served.loaded
        message = admin_service_pb2.ModelStatus(
            id=served.id,
            aliases=served.aliases,
            source=served.source,
            state=STATES[served.state],
            closing=closing,
            problem=served.problem,
            open_calls=sum(served in call.record.models for _, call in self._calls.by_task()),
        )
        if loaded is None:
            return message
        message.fingerprint = loaded.fingerprint
        message.load_duration.FromMilliseconds(round(served.load_s * 1000))
        message.weight_bytes = loaded.weight_bytes
        seconds = 0.0
        for admission in loaded.admissions:
            for work_class in WorkClass:
                tokens = admission.ledger.tokens(work_class)
                message.queued_inputs += admission.ledger.inputs(work_class)
                message.queued_tokens += tokens
                seconds += tokens * admission.drain_rate.token_s
            message.overloaded |= admission.overloaded
        message.queue_duration.FromMilliseconds(round(seconds * 1000))
        return message


def _field_of(setting: str) -> str:
    """Return the field of a request that holds a setting of a model."""
    first, _, _ = setting.partition(".")
    match first:
        case "":
            return "settings"
        case "id":
            return "model"
        case "source" | "aliases":
            return setting
        case _:
            return f"settings.{setting}"


def _not_changed(error: ModelChangeError) -> UnsupportedError:
    return UnsupportedError(str(error), field="model", metadata={"label": "MODEL_NOT_CHANGED"})
