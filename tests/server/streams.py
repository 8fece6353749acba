"""One StreamEmbed call, step by step."""

from collections.abc import Sequence
from typing import Any

import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.failures import Failure, failure_of
from tests.server.service import PATIENCE_S, Client


class Stream:
    """A stream that a test drives; nothing is sent or read on its own."""

    def __init__(
        self,
        client: Client,
        *,
        timeout_s: float = PATIENCE_S,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.call: Any = client.embedding.StreamEmbed(timeout=timeout_s, metadata=metadata)

    @classmethod
    async def open(
        cls, client: Client, *, metadata: Sequence[tuple[str, str]] = (), **setup: Any
    ) -> "Stream":
        """Open a stream and read its ready message."""
        stream = cls(client, metadata=metadata)
        await stream.set_up(**setup)
        assert (await stream.call.read()).WhichOneof("step") == "ready"
        return stream

    async def set_up(self, **setup: Any) -> None:
        """Send the first message."""
        await self.call.write(pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup(**setup)))

    async def send(self, *inputs: tuple[str, str]) -> None:
        """Send one batch of inputs: their ids and texts."""
        await self.call.write(batch(inputs))

    async def results(self, count: int) -> list[pb.StreamEmbedResult]:
        """Read messages until that many results have arrived."""
        results: list[pb.StreamEmbedResult] = []
        while len(results) < count:
            message = await self.call.read()
            assert message is not grpc.aio.EOF, f"{len(results)} of {count} results"
            results.extend(message.results.results)
        assert len(results) == count
        return results

    async def end(self) -> list[pb.StreamEmbedResult]:
        """Half-close and read the remaining results; the call must end with OK."""
        await self.call.done_writing()
        results = await self.rest()
        assert await self.call.code() is grpc.StatusCode.OK
        return results

    async def rest(self) -> list[pb.StreamEmbedResult]:
        """Read results until the server ends the stream."""
        results: list[pb.StreamEmbedResult] = []
        while (message := await self.call.read()) is not grpc.aio.EOF:
            results.extend(message.results.results)
        return results

    async def failure(self) -> Failure:
        """Read until the call fails; return the failure."""
        return await failure_of(self.rest())


def batch(inputs: Sequence[tuple[str, str]]) -> pb.StreamEmbedRequest:
    """Return one batch message."""
    made = [pb.StreamEmbedInput(id=identifier, text=text) for identifier, text in inputs]
    return pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=made))
