"""Server reflection: v1alpha, which grpcio ships, and v1, which tools ask for first.

The two versions of the protocol have the same messages on the wire; only the service's name
differs.
"""

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from embedgrpc.server.services.health import (
    CLASSIFY_SERVICE,
    EMBEDDING_SERVICE,
    MODEL_SERVICE,
    RERANK_SERVICE,
    TOKENIZER_SERVICE,
)

_V1 = "grpc.reflection.v1.ServerReflection"


class _MemberPool:
    """The default pool, which also finds the file of a method, a field or an enum's value.

    Python's pool only finds services, messages and enums; `grpcurl describe SERVICE.METHOD` asks
    for their members.
    """

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]  # untyped library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindFileContainingSymbol(symbol.rpartition(".")[0])


def add_reflection(server: grpc.aio.Server, *, others: Iterable[str] = ()) -> None:
    """Add the reflection services to a server.

    Args:
        server: The server.
        others: Its services beside those of the contract.
    """
    names = (
        EMBEDDING_SERVICE,
        RERANK_SERVICE,
        CLASSIFY_SERVICE,
        MODEL_SERVICE,
        TOKENIZER_SERVICE,
        *others,
        "grpc.health.v1.Health",
        reflection.SERVICE_NAME,
        _V1,
    )
    servicer: Any = reflection.aio.ReflectionServicer(names, _MemberPool())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_V1, {"ServerReflectionInfo": handler}),)
    )
