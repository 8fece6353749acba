"""Requests of the KServe v2 protocol, and a client that sends them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.server.service import PATIENCE_S, Service


def raw_of(texts: Sequence[str | bytes]) -> bytes:
    """Return texts as a raw tensor."""
    data = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(len(one).to_bytes(4, "little") + one for one in data)


def tensor(name: str, *shape: int, **fields: Any) -> Any:
    """Return an input."""
    values = {"name": name, "datatype": "BYTES", "shape": shape} | fields
    return service_pb2.ModelInferRequest.InferInputTensor(**values)


def request_for(*texts: str | bytes, raw: bool = True, **fields: Any) -> Any:
    """Return a request to embed texts."""
    request = service_pb2.ModelInferRequest(inputs=[tensor("text", len(texts), 1)], **fields)
    if raw:
        request.raw_input_contents.append(raw_of(texts))
    else:
        contents = request.inputs[0].contents.bytes_contents
        contents.extend(text.encode() if isinstance(text, str) else text for text in texts)
    return request


def pairs_for(query: str, texts: Sequence[str], **fields: Any) -> Any:
    """Return a request to score texts for one query."""
    return service_pb2.ModelInferRequest(
        inputs=[tensor("query", 1), tensor("text", len(texts))],
        raw_input_contents=[raw_of([query]), raw_of(texts)],
        **fields,
    )


def rows_of(response: Any, index: int = 0) -> Any:
    """Return an output, float32."""
    output = response.outputs[index]
    if response.raw_output_contents:
        flat = np.frombuffer(response.raw_output_contents[index], "<f4")
    else:
        flat = np.array(output.contents.fp32_contents, np.float32)
    return flat.reshape(tuple(output.shape))


class KServe:
    """The service on the connection of a server's client.

    Args:
        service: The server.
    """

    def __init__(self, service: Service) -> None:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
        self.stub = stub(service.client.channel)

    async def infer(self, request: Any) -> Any:
        """Make a ModelInfer call."""
        return await self.stub.ModelInfer(request, timeout=PATIENCE_S)
