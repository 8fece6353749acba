"""Server reflection, in the version that grpcio ships and in the one that tools ask for first.

The two versions of the protocol have the same messages on the wire; only the service's name
differs.
"""

from typing import Any

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from embedgrpc.server.health import EMBEDDING_SERVICE, MODEL_SERVICE, RERANK_SERVICE

_V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.aio.Server) -> None:
    """Lets clients ask a server for the contract."""
    names = (
        EMBEDDING_SERVICE,
        RERANK_SERVICE,
        MODEL_SERVICE,
        "grpc.health.v1.Health",
        reflection.SERVICE_NAME,
    )
    servicer: Any = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_V1, {"ServerReflectionInfo": handler}),)
    )
