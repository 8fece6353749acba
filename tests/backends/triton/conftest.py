from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.connection import Connection
from embedgrpc.models.remote.outputs import ServedOutput
from tests.backends.triton.kserve_server import KServeServer

Connect = Callable[..., TritonBackend]
OUTPUTS = {"sentence_embedding": ServedOutput("sentence_embedding", (4,))}


@pytest.fixture
def server() -> Iterator[KServeServer]:
    """A healthy server."""
    with KServeServer() as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return a function that opens backends; they are closed with the test."""
    with ExitStack() as resources:

        def open_backend(
            *servers: KServeServer | str, timeout_s: float = 20, loop: Any = None, **how: Any
        ) -> TritonBackend:
            addresses = [one if isinstance(one, str) else one.address for one in servers]
            connection = Connection(addresses, model="m", timeout_s=timeout_s, loop=loop)
            resources.callback(connection.close)
            return TritonBackend(
                connection,
                outputs=how.pop("outputs", OUTPUTS),
                inputs=how.pop("inputs", {}),
                **how,
            )

        yield open_backend
