"""The calls to one server."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from embedgrpc.backends.base import BackendError, BackendUnreachableError
from embedgrpc.backends.triton.circuit import Circuit
from embedgrpc.backends.triton.served_graph import ServedGraph, describe

_SERVICE = "/inference.GRPCInferenceService"
_TEXT_CHARACTERS_MAX = 200


class EndpointSilentError(BackendUnreachableError):
    """An endpoint did not answer in time: it is busy or hangs."""


class Endpoint:
    """One server with the model.

    Args:
        address: HOST:PORT.
        channel: The channel to it; closed by `close`.
        model: The model's name there.
        version: Its version there; empty for the server's choice.
        circuit: Decides whether the endpoint is called.

    Attributes:
        graph: The model as the endpoint last described it; None before its first answer.
        turn: The number of its last request, counted over all endpoints.
    """

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        *,
        model: str,
        version: str,
        circuit: Circuit,
    ) -> None:
        self.address = address
        self.circuit = circuit
        self.graph: ServedGraph | None = None
        self.turn = 0
        self._calls: set[Any] = set()
        self._channel = channel
        self._name = {"name": model, "version": version}
        # In bytes: the threads of the lanes serialize requests and parse answers.
        self._infer: Any = channel.unary_unary(f"{_SERVICE}/ModelInfer")

    async def infer(
        self, request: bytes, *, timeout_s: float, metadata: Sequence[tuple[str, str]]
    ) -> bytes:
        """Send a request and return the answer.

        Raises:
            EndpointSilentError: `give_up` ended the call.
            AioRpcError: The call failed.
        """
        call = self._infer(request, timeout=timeout_s, metadata=grpc.aio.Metadata(*metadata))
        self._calls.add(call)
        try:
            answer: bytes = await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise EndpointSilentError(f"{self.address} was given up") from None
        else:
            return answer
        finally:
            self._calls.discard(call)

    def give_up(self) -> None:
        """End the requests in progress, which would wait for a server that hangs."""
        for call in tuple(self._calls):
            call.cancel()

    @property
    def in_flight(self) -> int:
        """The number of requests in progress."""
        return len(self._calls)

    async def describe(self, *, timeout_s: float, connect: bool = False) -> ServedGraph:
        """Ask the server for the model's inputs, outputs and configuration.

        Args:
            timeout_s: The time limit of each of the four calls.
            connect: Whether to wait that long for a connection.

        Raises:
            EndpointSilentError: The server did not answer in time.
            BackendUnreachableError: The server is away, or the model is not ready.
            BackendError: The model cannot be used.
        """
        try:
            server = await self._ask("ServerReady", {}, timeout_s=timeout_s, connect=connect)
            model = await self._ask("ModelReady", self._name, timeout_s=timeout_s)
            if not (server.ready and model.ready):
                name = self._name["name"]
                raise BackendUnreachableError(f"{self.address}: the model {name} is not ready")
            metadata = await self._ask("ModelMetadata", self._name, timeout_s=timeout_s)
            config = await self._read_config(timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            # The server's text is safe to log: no caller's text was sent.
            text = " ".join((error.details() or "").split())[:_TEXT_CHARACTERS_MAX]
            silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            kind = EndpointSilentError if silent else BackendUnreachableError
            raise kind(f"{self.address} answered {error.code().name}: {text}") from None
        try:
            return describe(metadata, config)
        except BackendError as error:
            raise BackendError(f"{self.address}: {error}") from None

    async def close(self) -> None:
        """Close the channel, which ends all calls."""
        await self._channel.close()

    async def _read_config(self, *, timeout_s: float) -> Any | None:
        try:
            answer = await self._ask("ModelConfig", self._name, timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None  # a server of the same protocol other than Triton
            raise
        return answer.config

    async def _ask(
        self, method: str, request: Mapping[str, str], *, timeout_s: float, connect: bool = False
    ) -> Any:
        call: Any = self._channel.unary_unary(
            f"{_SERVICE}/{method}",
            request_serializer=getattr(service_pb2, f"{method}Request").SerializeToString,
            response_deserializer=getattr(service_pb2, f"{method}Response").FromString,
        )
        message = getattr(service_pb2, f"{method}Request")(**request)
        return await call(message, timeout=timeout_s, wait_for_ready=connect)
