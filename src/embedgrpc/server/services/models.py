"""ModelService: lists and describes the models of the server."""

import base64
import binascii
import contextlib
from typing import Any

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.models.kinds import Kind, Representation, RerankMethod, Similarity, Truncation
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.server.contract.embed_options import ENCODINGS, REPRESENTATIONS
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.options import TRUNCATIONS
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, ModelState, ServedModel
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX
from embedgrpc.v1 import model_service_pb2, model_service_pb2_grpc

_PAGE_SIZE = 100
_PAGE_SIZE_MAX = 1000
# Base64 of the UTF-8 of the longest name.
_PAGE_TOKEN_CHARACTERS_MAX = (4 * NAME_CHARACTERS_MAX + 2) // 3 * 4

_STATES = {
    ModelState.LOADING: model_service_pb2.STATE_LOADING,
    ModelState.READY: model_service_pb2.STATE_READY,
    ModelState.FAILED: model_service_pb2.STATE_FAILED,
}
_SIMILARITIES = {
    Similarity.COSINE: model_service_pb2.SIMILARITY_COSINE,
    Similarity.DOT: model_service_pb2.SIMILARITY_DOT,
    Similarity.EUCLIDEAN: model_service_pb2.SIMILARITY_EUCLIDEAN,
    Similarity.MANHATTAN: model_service_pb2.SIMILARITY_MANHATTAN,
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
_TRUNCATIONS: dict[Truncation, Any] = {ours: theirs for theirs, ours in TRUNCATIONS.items()}
_ENCODINGS: dict[Any, Any] = {ours: theirs for theirs, ours in ENCODINGS.items() if theirs}


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Serves ListModels and GetModel."""

    def __init__(self, catalog: Catalog, *, max_inputs: int) -> None:
        self._catalog = catalog
        self._max_inputs = max_inputs

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """List the models, by id."""
        del context
        check_not_negative(request.page_size, field="page_size")
        check_enum(model_service_pb2.Task, request.task, field="task")
        after = _read_page_token(request.page_token)
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE_MAX)
        models = [
            message
            for message in map(self._describe, sorted(self._catalog, key=lambda one: one.id))
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

    def _describe(self, served: ServedModel) -> model_service_pb2.Model:
        message = model_service_pb2.Model(
            id=served.id,
            aliases=served.aliases,
            source=served.source,
            state=_STATES[served.state],
            default_truncation=_TRUNCATIONS[served.default_truncation],
            max_inputs=self._max_inputs,
            backend=model_service_pb2.BACKEND_TRITON
            if is_triton_source(served.source)
            else model_service_pb2.BACKEND_ONNX_RUNTIME,
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
        message.tasks.append(model_service_pb2.TASK_EMBED)
    if loaded.reranker:
        message.tasks.append(model_service_pb2.TASK_RERANK)
        message.rerank_method = _RERANK_METHODS[loaded.reranker.method]
    message.max_input_tokens = properties.max_tokens
    message.weight_type = loaded.weight_type
    message.device = loaded.device
    message.batch_tokens = loaded.scheduler.budget.tokens
    if properties.kind is Kind.CROSS_ENCODER:
        return
    message.representations.extend(_REPRESENTATIONS[one] for one in properties.representations)
    message.encodings.extend(_ENCODINGS[encoding] for encoding in loaded.encodings)
    message.dimensions = properties.dimensions
    message.any_dimensions = Representation.DENSE in properties.representations
    message.similarity = _SIMILARITIES[properties.similarity]
    message.normalized = properties.normalize
    message.prompts.update(properties.prompts)
    message.default_prompt_name = properties.default_prompt_name


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
