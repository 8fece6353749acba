"""The workloads as unary calls: a method, and serialised requests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from grpc_health.v1 import health_pb2

from benchmarks import workloads
from benchmarks.workloads import Workload
from embedgrpc.v1 import embedding_service_pb2, rerank_service_pb2

_EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
_RERANK = "/embedgrpc.v1.RerankService/Rerank"
_CHECK = "/grpc.health.v1.Health/Check"
_CHECKED_SERVICE = "embedgrpc.v1.EmbeddingService"
_DOCUMENTS_PER_QUERY = 50


@dataclass(frozen=True, slots=True)
class UnaryCalls:
    """Calls of one kind.

    Attributes:
        name: The name in tables.
        what: The content of one call.
        method: The path of the method.
        requests: The request messages, in the order of sending.
        answer: The only right response, if there is one: any other counts as UNKNOWN.
    """

    name: str
    what: str
    method: str
    requests: tuple[bytes, ...]
    answer: bytes | None = None


def health_checks() -> UnaryCalls:
    """Return health checks of the EmbeddingService that succeed only with SERVING."""
    request = health_pb2.HealthCheckRequest(service=_CHECKED_SERVICE)
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    return UnaryCalls(
        "health",
        "health checks",
        _CHECK,
        (request.SerializeToString(),),
        answer=answer.SerializeToString(),
    )


# Enough that no two equal texts are ever in flight.
_COPIES = 50


def embed_calls(name: str, workload: Workload) -> UnaryCalls:
    """Return calls of one text each, all different: the server runs equal texts in flight once."""
    requests = tuple(
        embedding_service_pb2.EmbedRequest(texts=[f"{copy} {text}"]).SerializeToString()
        for copy in range(_COPIES)
        for text in workload.texts
    )
    return UnaryCalls(name, f"1 text a call: {workload.what}", _EMBED, requests)


def _rerank_calls() -> UnaryCalls:
    """Return calls that rank fifty documents, each for another query."""
    documents = workloads.candidates()
    starts = range(0, len(documents.texts), _DOCUMENTS_PER_QUERY)
    requests = tuple(
        rerank_service_pb2.RerankRequest(
            query=query, documents=documents.texts[start : start + _DOCUMENTS_PER_QUERY]
        ).SerializeToString()
        for query, start in zip(workloads.short().texts, starts, strict=False)
    )
    what = f"1 query and {_DOCUMENTS_PER_QUERY} documents a call: {documents.what}"
    return UnaryCalls("rerank", what, _RERANK, requests)


WORKLOADS: Mapping[str, Callable[[], UnaryCalls]] = {
    "queries": lambda: embed_calls("queries", workloads.short()),
    "passages": lambda: embed_calls("passages", workloads.passages()),
    "mixed": lambda: embed_calls("mixed", workloads.mixed()),
    "uniform": lambda: embed_calls("uniform", workloads.uniform()),
    "rerank": _rerank_calls,
}
