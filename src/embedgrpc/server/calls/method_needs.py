"""What callers need for each gRPC method."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from embedgrpc.server.caller import ANY_CALLER, PUBLIC, Need, Scope, Service

_KNOWN_METHODS_MAX = 1024

_KSERVE: Final = "/inference.GRPCInferenceService/"
# By the beginnings of full names, the first that fits. What is missing here takes any caller that
# is known.
NEEDS: Final[Mapping[str, Need]] = {
    "/grpc.health.v1.Health/": PUBLIC,
    "/grpc.reflection.v1.ServerReflection/": Need(public_as="reflection"),
    "/grpc.reflection.v1alpha.ServerReflection/": Need(public_as="reflection"),
    "/embedgrpc.v1.EmbeddingService/": Need(Service.EMBED),
    "/embedgrpc.v1.RerankService/": Need(Service.RERANK),
    "/embedgrpc.v1.ClassifyService/": Need(Service.CLASSIFY),
    "/embedgrpc.v1.TokenizerService/": Need(Service.TOKENIZE),
    "/embedgrpc.v1.ModelService/": Need(Service.MODELS),
    "/embedgrpc.v1.AdminService/": Need(scope=Scope.ADMIN),
    "/tei.v1.Info/": Need(Service.MODELS),
    "/tei.v1.Embed/": Need(Service.EMBED),
    "/tei.v1.Predict/": Need(Service.CLASSIFY),
    "/tei.v1.Rerank/": Need(Service.RERANK),
    "/tei.v1.Tokenize/": Need(Service.TOKENIZE),
    **{f"{_KSERVE}{method}": PUBLIC for method in ("ServerLive", "ServerReady", "ModelReady")},
    # The model decides what a caller needs to use it.
    f"{_KSERVE}ModelInfer": ANY_CALLER,
    f"{_KSERVE}ModelStreamInfer": ANY_CALLER,
    # All others describe models.
    _KSERVE: Need(Service.MODELS),
}


@lru_cache(_KNOWN_METHODS_MAX)
def need_of(method: str) -> Need:
    """Return what a caller needs for a method, such as `/embedgrpc.v1.ModelService/GetModel`."""
    for prefix, need in NEEDS.items():
        if method.startswith(prefix):
            return need
    return ANY_CALLER
