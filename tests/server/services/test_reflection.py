import asyncio
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests.server.conftest import Serve
from tests.server.service import PATIENCE_S, Service

Request: Any = reflection_pb2.ServerReflectionRequest
PROTOCOLS = ("v1", "v1alpha")


async def _ask(service: Service, protocol: str, request: Any) -> Any:
    """Send one request to a version of the protocol, whose messages are the same."""
    call: Any = service.client.channel.stream_stream(
        f"/grpc.reflection.{protocol}.ServerReflection/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (response,) = [one async for one in call(iter([request]), timeout=PATIENCE_S)]
    return response


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_services_and_their_members_are_described(serve: Serve, protocol: str) -> None:
    """Both versions list every service, and return the file of a service and of a method."""
    service = await serve()
    response = await _ask(service, protocol, Request(list_services=""))
    assert {one.name for one in response.list_services_response.service} == {
        "embedgrpc.v1.EmbeddingService",
        "embedgrpc.v1.RerankService",
        "embedgrpc.v1.ClassifyService",
        "embedgrpc.v1.ModelService",
        "embedgrpc.v1.TokenizerService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    name = "embedgrpc.v1.EmbeddingService"
    files = [
        (await _ask(service, protocol, Request(file_containing_symbol=symbol)))
        for symbol in (name, f"{name}.Embed", "embedgrpc.v1.EmbedRequest.texts")
    ]
    described = [one.file_descriptor_response.file_descriptor_proto[0] for one in files]
    assert described[0] == described[1] == described[2]
    assert b"embedding_service.proto" in described[0]
    unknown = await _ask(service, protocol, Request(file_containing_symbol="embedgrpc.v1.Nothing"))
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_reflection_can_be_switched_off(serve: Serve, protocol: str) -> None:
    """Without the setting, neither version is served."""
    service = await serve(reflection=False)
    # A call that sends nothing: while the server ends a call, a write of grpc.aio may fail first.
    call: Any = service.client.channel.stream_stream(
        f"/grpc.reflection.{protocol}.ServerReflection/ServerReflectionInfo"
    )()
    assert await asyncio.wait_for(call.code(), PATIENCE_S) is grpc.StatusCode.UNIMPLEMENTED
