"""Info of tei.v1."""

from importlib.metadata import version

from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.tei.v1 import tei_pb2


def describe_model(served: ServedModel, settings: Settings) -> tei_pb2.InfoResponse:
    """Describe a model and the limits.

    Raises:
        BackendUnavailableError: The model cannot be called now.
    """
    loaded = served.ready()
    budget = loaded.scheduler.budget
    return tei_pb2.InfoResponse(
        version=version("embedgrpc"),
        model_id=served.id,
        model_sha=loaded.revision or None,
        model_dtype=loaded.weight_type,
        model_type=_type_of(loaded),
        max_concurrent_requests=settings.max_calls,
        max_input_length=loaded.properties.max_tokens,
        max_batch_tokens=budget.tokens,
        max_batch_requests=budget.sequences,
        max_client_batch_size=settings.max_inputs,
        tokenization_workers=settings.tokenizer_threads,
    )


def _type_of(loaded: LoadedModel) -> tei_pb2.ModelType:
    if loaded.embedder is not None:
        return tei_pb2.MODEL_TYPE_EMBEDDING
    if loaded.reranker is not None:
        return tei_pb2.MODEL_TYPE_RERANKER
    return tei_pb2.MODEL_TYPE_CLASSIFIER
