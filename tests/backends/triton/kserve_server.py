"""A server of KServe's protocol with a predictable model and configurable faults."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from embedgrpc.backends.triton.loops import LoopThread

Array = NDArray[Any]
# From ids, mask and types, int64 [batch, tokens], to the outputs by name.
Model = Callable[[Array, Array, Array], Mapping[str, Array]]
# From texts to the outputs by name.
TextModel = Callable[[Sequence[str]], Mapping[str, Array]]
PATIENCE_S = 60.0
PRIVATE = "/models/secret/1/model.onnx: token qwxz out of bounds"


class Fault(Enum):
    """A fault of requests."""

    NONE = auto()
    UNAVAILABLE = auto()
    QUEUE_FULL = auto()
    EXHAUSTED = auto()
    QUEUED_TOO_LONG = auto()
    UNLOADED = auto()
    REFUSED = auto()
    BROKEN = auto()
    SILENT = auto()
    WRONG_ROWS = auto()
    WRONG_WIDTH = auto()
    SHORT_BYTES = auto()
    MISSING_OUTPUT = auto()
    WRONG_TYPE = auto()
    FEW_RAW = auto()
    NAN = auto()


STATUSES = {
    Fault.UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    Fault.QUEUE_FULL: (grpc.StatusCode.UNAVAILABLE, "[request id: 1] Exceeds maximum queue size"),
    Fault.EXHAUSTED: (grpc.StatusCode.RESOURCE_EXHAUSTED, PRIVATE),
    Fault.QUEUED_TOO_LONG: (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
    Fault.UNLOADED: (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found"),
    Fault.REFUSED: (grpc.StatusCode.INVALID_ARGUMENT, PRIVATE),
    Fault.BROKEN: (grpc.StatusCode.INTERNAL, PRIVATE),
}


def summary(ids: Array, mask: Array, types: Array) -> Mapping[str, Array]:
    """A model whose vector shows the ids, length and types of its text."""
    columns = ((ids * mask).sum(1), mask.sum(1), (ids * mask).max(1), types.sum(1))
    hidden = np.stack([ids, mask, types], axis=2).astype(np.float32)
    return {
        "sentence_embedding": np.stack(columns, axis=1).astype(np.float32),
        "last_hidden_state": hidden,
    }


def spell(texts: Sequence[str]) -> Mapping[str, Array]:
    """A model whose vector shows length, sum, first and last of its text's code points."""
    points = [[ord(character) for character in text] for text in texts]
    rows = [[len(one), sum(one), one[0] if one else 0, one[-1] if one else 0] for one in points]
    return {"sentence_embedding": np.array(rows, np.float32)}


class KServeServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped library
    """A context manager that runs a server on a free loopback port.

    Attributes:
        address: HOST:PORT.
        model: The model.
        text_model: The model to run instead if the input is of type BYTES.
        text_shape: The declared shape of that input.
        texts: The texts of each request.
        inputs: Name and type of each input.
        outputs: Name, type and lengths after the batch of each output.
        batch_max: Its max_batch_size.
        parameters: The parameters of its configuration.
        instances: The number of instances that it declares.
        kind: The kind of its instances.
        decoupled: Whether it declares its model as decoupled.
        has_config: Whether it supports ModelConfig.
        typed: Whether it answers with typed contents.
        ready: Whether its model is ready.
        fault: The fault of all requests.
        shapes: Shape of each request.
        metadata: Metadata of each request.
        cancelled: Set when a request is cancelled.
        entered: Set when a request comes.
        looks: The number of calls of ServerReady.
    """

    def __init__(
        self,
        model: Model = summary,
        *,
        name: str = "m",
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.name = name
        self.address = ""
        self.model = model
        self.text_model: TextModel = spell
        self.text_shape = [-1, 1]
        self.texts: list[list[str]] = []
        self.inputs = [("input_ids", "INT64"), ("attention_mask", "INT64"),
                       ("token_type_ids", "INT64")]  # fmt: skip
        self.outputs: list[tuple[str, str, Sequence[int]]] = [("sentence_embedding", "FP32", [4])]
        self.batch_max = 64
        self.parameters: dict[str, str] = {}
        self.instances = 1
        self.kind = "KIND_CPU"
        self.decoupled = False
        self.has_config = True
        self.typed = False
        self.ready = True
        self.fault = Fault.NONE
        self.shapes: list[tuple[int, ...]] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = threading.Event()
        self.entered = threading.Event()
        self.looks = 0
        self._port = 0
        self._credentials = credentials
        self._server: Any = None
        self._loop: LoopThread | None = None

    def __enter__(self) -> Self:
        self._loop = LoopThread()
        self._wait(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._loop
        self._loop.close()

    def stop(self) -> None:
        """Stop as if killed; requests in progress are lost."""
        if self._server is not None:
            self._wait(self._server.stop(None))
            self._server = None

    def start(self) -> None:
        """Start again at the same address."""
        self._wait(self._start())

    def _wait(self, coroutine: Any) -> None:
        assert self._loop
        asyncio.run_coroutine_threadsafe(coroutine, self._loop.loop).result(PATIENCE_S)

    async def _start(self) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1))
        self._server = grpc.aio.server(options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        place = f"127.0.0.1:{self._port}"
        if self._credentials is None:
            self._port = self._server.add_insecure_port(place)
        else:
            self._port = self._server.add_secure_port(place, self._credentials)
        self.address = f"127.0.0.1:{self._port}"
        await self._server.start()

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer whether the server is ready; see the protocol."""
        del request
        self.looks += 1
        if self.fault is Fault.SILENT:
            await self._say_nothing()
        if self.fault is Fault.UNAVAILABLE:
            await context.abort(*STATUSES[self.fault])
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer whether the model is ready; see the protocol."""
        del context
        ready = self.ready and self.fault is not Fault.UNLOADED and request.name == self.name
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer with the model's inputs and outputs; see the protocol."""
        del request, context
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        return service_pb2.ModelMetadataResponse(
            name=self.name,
            versions=["1"],
            inputs=[
                tensor(
                    name=one, datatype=kind, shape=self.text_shape if kind == "BYTES" else [-1, -1]
                )
                for one, kind in self.inputs
            ],
            outputs=[
                tensor(name=one, datatype=kind, shape=[-1, *dims])
                for one, kind, dims in self.outputs
            ],
        )

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer with the model's configuration; see the protocol."""
        del request
        if not self.has_config:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        config = model_config_pb2.ModelConfig(name=self.name, max_batch_size=self.batch_max)
        config.instance_group.add(
            count=self.instances,
            kind=model_config_pb2.ModelInstanceGroup.Kind.Value(self.kind),
        )
        config.model_transaction_policy.decoupled = self.decoupled
        for key, value in self.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Run the model; see the protocol."""
        self.shapes.append(tuple(request.inputs[0].shape))
        self.metadata.append(dict(context.invocation_metadata()))
        self.entered.set()
        if self.fault is Fault.SILENT:
            await self._say_nothing()
        if self.fault in STATUSES:
            await context.abort(*STATUSES[self.fault])
        sequences = request.inputs[0].shape[0]
        if self.batch_max and sequences > self.batch_max:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "batch-size must be <= 64")
        return self._answer(request)

    async def _say_nothing(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _answer(self, request: Any) -> Any:
        values = self._run(request)
        kinds = {name: kind for name, kind, _ in self.outputs}
        response = service_pb2.ModelInferResponse(model_name=self.name, model_version="1")
        for wanted in request.outputs:
            self._add(response, wanted.name, kinds[wanted.name], np.array(values[wanted.name]))
        if self.fault is Fault.FEW_RAW:
            response.raw_output_contents.extend([b""])
        return response

    def _run(self, request: Any) -> Mapping[str, Array]:
        if request.inputs[0].datatype == "BYTES":
            (raw,) = request.raw_input_contents
            self.texts.append(decode_texts(raw))
            assert len(self.texts[-1]) == np.prod(request.inputs[0].shape)
            return self.text_model(self.texts[-1])
        given = {
            tensor.name: np.frombuffer(raw, _DTYPES[tensor.datatype])
            .reshape(tensor.shape)
            .astype(np.int64)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        ids = given["input_ids"]
        types = given.get("token_type_ids", np.zeros_like(ids))
        return self.model(ids, given["attention_mask"], types)

    def _add(self, response: Any, name: str, kind: str, values: Array) -> None:
        match self.fault:
            case Fault.MISSING_OUTPUT:
                return
            case Fault.WRONG_ROWS:
                values = values[:-1]
            case Fault.WRONG_WIDTH:
                values = values[..., :-1]
            case Fault.NAN:
                values = values * np.nan
            case Fault.WRONG_TYPE:
                kind = "INT8"
        tensor = response.outputs.add(name=name, datatype=kind, shape=values.shape)
        if self.typed:
            contents = {
                "FP32": tensor.contents.fp32_contents,
                "FP64": tensor.contents.fp64_contents,
            }
            contents[kind].extend(values.ravel().tolist())
            return
        raw = encode(values, kind)
        response.raw_output_contents.append(raw[:-4] if self.fault is Fault.SHORT_BYTES else raw)


_DTYPES = {"INT64": "<i8", "INT32": "<i4", "BOOL": "?", "FP32": "<f4", "FP16": "<f2",
           "FP64": "<f8", "INT8": "<i1"}  # fmt: skip


def decode_texts(raw: bytes) -> list[str]:
    """Return the elements of a tensor of type BYTES, which must be UTF-8."""
    texts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:end].decode())
        raw = raw[end:]
    return texts


def encode(values: Array, kind: str) -> bytes:
    """Encode values as a server does."""
    if kind == "BF16":
        # The upper halves, truncated.
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(_DTYPES[kind]).tobytes()
