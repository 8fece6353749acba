"""ModelService: lists and describes the models of the server."""

import base64
import binascii
import contextlib
import time
from importlib.metadata import version
from typing import Any

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.models.kinds import (
    Activation,
    Kind,
    Representation,
    RerankMethod,
    Similarity,
    Truncation,
)
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.server.contract.classify_options import SCORE_FUNCTIONS
from embedgrpc.server.contract.embed_options import ENCODINGS, REPRESENTATIONS
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.limits import CONTRACT_VERSION, describe_limits
from embedgrpc.server.contract.options import TRUNCATIONS, instruction_prompt
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ModelState, ServedModel
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import model_service_pb2, model_service_pb2_grpc

_PAGE_SIZE = 100
_PAGE_SIZE_MAX = 1000
# Base64 of the UTF-8 of the longest name.
_PAGE_TOKEN_CHARACTERS_MAX = (4 * NAME_CHARACTERS_MAX + 2) // 3 * 4

STATES = {
    ModelState.LOADING: model_service_pb2.MODEL_STATE_LOADING,
    ModelState.READY: model_service_pb2.MODEL_STATE_READY,
    ModelState.FAILED: model_service_pb2.MODEL_STATE_FAILED,
    ModelState.UNAVAILABLE: model_service_pb2.MODEL_STATE_UNAVAILABLE,
}
_SIMILARITIES = {
    Similarity.COSINE: model_service_pb2.MODEL_SIMILARITY_COSINE,
    Similarity.DOT: model_service_pb2.MODEL_SIMILARITY_DOT,
    Similarity.EUCLIDEAN: model_service_pb2.MODEL_SIMILARITY_EUCLIDEAN,
    Similarity.MANHATTAN: model_service_pb2.MODEL_SIMILARITY_MANHATTAN,
}
_RERANK_METHODS = {
    RerankMethod.CROSS_ENCODER: model_service_pb2.RERANK_METHOD_CROSS_ENCODER,
    RerankMethod.SIMILARITY: model_service_pb2.RERANK_METHOD_SIMILARITY,
    RerankMethod.LATE_INTERACTION: model_service_pb2.RERANK_METHOD_LATE_INTERACTION,
    RerankMethod.HYBRID: model_service_pb2.RERANK_METHOD_HYBRID,
}
_REPRESENTATIONS: dict[Representation, Any] = {
    ours: theirs for theirs, ours in REPRESENTATIONS.items()
}
_SCORE_FUNCTIONS: dict[Activation, Any] = {ours: theirs for theirs, ours in SCORE_FUNCTIONS.items()}
_TRUNCATIONS: dict[Truncation, Any] = {ours: theirs for theirs, ours in TRUNCATIONS.items()}
_ENCODINGS: dict[Any, Any] = {ours: theirs for theirs, ours in ENCODINGS.items() if theirs}


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Serves ListModels, GetModel and GetServer.

    Args:
        catalog: The models.
        settings: The limits.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._limits = describe_limits(settings)
        self._version = version("embedgrpc")
        self._started = time.time()
        # The wall clock may be set back.
        self._started_monotonic = time.monotonic()

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """List the models, by id."""
        del context
        check_not_negative(request.page_size, field="page_size")
        check_enum(model_service_pb2.ModelTask, request.task, field="task")
        after = _read_page_token(request.page_token)
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE_MAX)
        models = [
            message
            for message in map(
                self._describe, sorted(self._catalog.usable(), key=lambda one: one.id)
            )
            if message.id > after and (not request.task or request.task in message.tasks)
        ]
        page = models[:size]
        more = len(models) > size
        return model_service_pb2.ListModelsResponse(
            models=page, next_page_token=_page_token(page[-1].id) if more else ""
        )

    async def GetModel(  # noqa: N802 - the contract's name
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Describe one model."""
        del context
        # It may be megabytes: read the field once.
        name = request.model
        if not name:
            raise InvalidRequestError(
                "model is empty; an id or an alias is required", field="model"
            )
        return model_service_pb2.GetModelResponse(model=self._describe(self._catalog.find(name)))

    async def GetServer(  # noqa: N802 - the contract's name
        self, request: model_service_pb2.GetServerRequest, context: Any
    ) -> model_service_pb2.GetServerResponse:
        """Describe the server."""
        del request, context
        default = self._catalog.default
        server = model_service_pb2.Server(
            version=self._version,
            contract_version=CONTRACT_VERSION,
            default_model=default.id if default in self._catalog.usable() else "",
            limits=self._limits,
        )
        server.start_time.FromMilliseconds(round(self._started * 1000))
        uptime_s = time.monotonic() - self._started_monotonic
        server.uptime.FromMilliseconds(round(uptime_s * 1000))
        return model_service_pb2.GetServerResponse(server=server)

    def _describe(self, served: ServedModel) -> model_service_pb2.Model:
        message = model_service_pb2.Model(
            id=served.id,
            aliases=served.aliases,
            source=served.source,
            state=STATES[served.state],
            default_truncation=_TRUNCATIONS[served.default_truncation],
            limits=self._limits,
            backend=model_service_pb2.MODEL_BACKEND_TRITON
            if is_triton_source(served.source)
            else model_service_pb2.MODEL_BACKEND_ONNX_RUNTIME,
        )
        if served.loaded is not None:
            _describe_loaded(message, served.loaded)
        return message


def _describe_loaded(message: model_service_pb2.Model, loaded: LoadedModel) -> None:
    """Add what is known of a model once it is loaded."""
    properties = loaded.properties
    message.revision = loaded.revision
    message.fingerprint = loaded.fingerprint
    if loaded.embedder:
        message.tasks.append(model_service_pb2.MODEL_TASK_EMBED)
    if loaded.reranker:
        message.tasks.append(model_service_pb2.MODEL_TASK_RERANK)
        message.rerank_method = _RERANK_METHODS[loaded.reranker.method]
    message.max_tokens = properties.max_tokens
    message.max_query_tokens = loaded.max_query_tokens
    message.limits.max_text_characters = loaded.max_characters
    message.languages.extend(loaded.languages)
    message.weight_type = loaded.weight_type
    message.device = loaded.device
    message.batch_tokens = loaded.scheduler.budget.tokens
    if loaded.classifier:
        message.tasks.append(model_service_pb2.MODEL_TASK_CLASSIFY)
        message.labels.extend(properties.labels)
        message.score_function = _SCORE_FUNCTIONS[properties.score_function]
    message.prompts.update(properties.prompts)
    message.default_prompt_name = properties.default_prompt_name
    message.takes_instruction = loaded.renders_instruction
    if properties.kind is not Kind.EMBEDDING:
        return
    message.representations.extend(_REPRESENTATIONS[one] for one in properties.representations)
    message.encodings.extend(_ENCODINGS[encoding] for encoding in loaded.encodings)
    message.dimensions = properties.vector_dimensions
    message.any_dimensions = Representation.DENSE in properties.representations
    message.similarity = _SIMILARITIES[properties.similarity]
    message.normalized = properties.normalized
    if loaded.embedder and loaded.embedder.has_token_vectors:
        message.token_dimensions = properties.token_dimensions
    if loaded.reranker:
        message.takes_instruction = instruction_prompt("", properties) is not None


def _page_token(last_id: str) -> str:
    return base64.urlsafe_b64encode(last_id.encode()).decode()


def _read_page_token(token: str) -> str:
    """Return the id after which the page begins; empty for the first page."""
    if len(token) <= _PAGE_TOKEN_CHARACTERS_MAX:
        with contextlib.suppress(ValueError, binascii.Error):
            return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    raise InvalidRequestError(
        f"page_token, of {len(token)} characters, is not one that ListModels returned",
        field="page_token",
    )
