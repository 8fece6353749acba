import asyncio
from collections.abc import Iterator
from typing import Any, Self, cast

import pytest

from embedgrpc.client import (
    AsyncClassifyStream,
    AsyncClient,
    AsyncEmbedStream,
    AsyncRerankStream,
    Client,
)
from tests.client.servicer import Script, Servicer, serving


class BlockingStream:
    """An asynchronous stream with the methods of one for threads."""

    def __init__(
        self,
        stream: AsyncEmbedStream | AsyncRerankStream | AsyncClassifyStream,
        runner: asyncio.Runner,
    ) -> None:
        self._stream = stream
        self._runner = runner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(self._anext())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _anext(self) -> Any:
        return await anext(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def input_tokens(self) -> int:
        """Return the stream's own count."""
        return self._stream.input_tokens

    @property
    def reconnect_count(self) -> int:
        """Return the stream's own count."""
        return self._stream.reconnect_count

    def ready(self) -> Any:
        """Wait for the server to accept the stream."""
        return self._runner.run(self._stream.ready())

    def remaining(self) -> list[Any]:
        """Return the inputs that are left."""
        return self._runner.run(self._remaining())

    async def _remaining(self) -> list[Any]:
        return [item async for item in self._stream.remaining()]

    def close(self) -> None:
        """Close the stream."""
        self._runner.run(self._stream.aclose())


class BlockingClient:
    """An `AsyncClient` with the methods of a `Client`, so that one test covers both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._client = AsyncClient(*args, **options)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self._runner.run(
            getattr(self._client, name)(*args, **options)
        )

    def embed_stream(self, *args: Any, **options: Any) -> BlockingStream:
        """Make a stream that runs during iteration."""
        return BlockingStream(self._client.embed_stream(*args, **options), self._runner)

    def classify_stream(self, *args: Any, **options: Any) -> BlockingStream:
        """Make a stream that runs during iteration."""
        return BlockingStream(self._client.classify_stream(*args, **options), self._runner)

    def rerank_stream(self, *args: Any, **options: Any) -> BlockingStream:
        """Make a stream that runs during iteration."""
        return BlockingStream(self._client.rerank_stream(*args, **options), self._runner)

    def close(self) -> None:
        """Close the client and its loop."""
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture
def server() -> Iterator[tuple[Servicer, str]]:
    """Run a server for one test."""
    with serving() as served:
        yield served


@pytest.fixture
def script(server: tuple[Servicer, str]) -> Script:
    """The behaviour of the server, and what it received."""
    return server[0].script


@pytest.fixture
def target(server: tuple[Servicer, str]) -> str:
    """The address of the server."""
    return server[1]


@pytest.fixture(params=[Client, BlockingClient], ids=["sync", "aio"])
def client_class(request: pytest.FixtureRequest) -> type[Client]:
    """Either class of client, with the same blocking methods."""
    return cast("type[Client]", request.param)


@pytest.fixture
def client(client_class: type[Client], target: str) -> Iterator[Client]:
    """A client of either class, for the server."""
    made = client_class(target, timeout_s=10)
    yield made
    made.close()
