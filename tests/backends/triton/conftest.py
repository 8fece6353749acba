from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.connection import Connection
from embedgrpc.backends.triton.messages import Recipe
from tests.backends.triton.kserve_server import KServeServer

Connect = Callable[..., TritonBackend]
RECIPES = {"sentence_embedding": Recipe("sentence_embedding", (4,))}


@pytest.fixture
def server() -> Iterator[KServeServer]:
    """A server that is well."""
    with KServeServer() as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens backends that are closed with the test."""
    with ExitStack() as resources:

        def open_backend(
            *servers: KServeServer | str, timeout_s: float = 20, loop: Any = None, **how: Any
        ) -> TritonBackend:
            addresses = [one if isinstance(one, str) else one.address for one in servers]
            connection = Connection(addresses, model="m", timeout_s=timeout_s, loop=loop)
            resources.callback(connection.close)
            return TritonBackend(
                connection,
                recipes=how.pop("recipes", RECIPES),
                fillings=how.pop("fillings", {}),
                **how,
            )

        yield open_backend
