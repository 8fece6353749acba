"""The clients of one embedder or ranker of a framework."""

import asyncio
import functools
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from typing_extensions import Self

from embedgrpc.client.async_client import AsyncClient
from embedgrpc.client.channel import ChannelOwner
from embedgrpc.client.client import Client
from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.integrations.keys import ApiKey, key_from_environment

ClientT = TypeVar("ClientT", bound=ChannelOwner)

# The processes that called from an event loop: this one, or one that it was forked from.
_loop_processes: set[int] = set()


def connection_to(
    target: str, client_settings: Mapping[str, Any] | None, *, api_key: ApiKey | None = None
) -> "Connection":
    """Return the connection to a server, from the arguments of an integration.

    Args:
        target: HOST:PORT or unix:PATH.
        client_settings: Other arguments of `Client`, such as `tls` and `timeout_s`.
        api_key: As in `Connection`.

    Raises:
        TypeError: There is no such setting, or one has the wrong type or is an argument of its own.
        ValueError: The target is no address, or settings do not fit.
    """
    chosen = client_settings or {}
    if not isinstance(chosen, Mapping):
        raise TypeError(f"client_settings is not a dict but of type {type(chosen).__name__}")
    for name in ("target", "api_key"):
        if name in chosen:
            raise TypeError(f"client_settings have {name!r}, which is an argument of its own")
    return Connection(target, api_key=api_key, **chosen)


class Connection:
    """The settings of a server, and the clients that use them, made at their first calls.

    There is one client for the threads of a process, and one for each event loop. A copy, a pickle
    or a forked process makes its own; but gRPC cannot be used from an event loop in a process that
    was forked after calls from one. Connections with equal settings are equal.

    Args:
        target: HOST:PORT or unix:PATH.
        api_key: The API key of the caller, or a function that returns it when a client is made;
            None for that of the environment variable EMBEDGRPC_API_KEY, if it is set. A pickle
            holds a key that is a str.
        settings: Other arguments of `Client`. A `token` must be a function: frameworks write
            settings down.

    Raises:
        TypeError: There is no such setting, or one has the wrong type.
        ValueError: The target is no address, or settings do not fit.
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, api_key: ApiKey | None = None, **settings: Any
    ) -> None:
        if isinstance(settings.get("token"), str) and settings["token"]:
            raise TypeError("token is a str, which would be written down; give a function")
        # Wrong settings are told here, and not at the first call.
        Client(target, **settings)
        self._target = target
        self._api_key = api_key
        self._settings = settings
        # By the id of the process, and by that and the event loop.
        self._clients: dict[int, Client] = {}
        self._async_clients: dict[tuple[int, asyncio.AbstractEventLoop], AsyncClient] = {}

    @property
    def target(self) -> str:
        """The address of the server."""
        return self._target

    def client(self) -> Client:
        """Return the client for threads."""
        process = os.getpid()
        client = self._clients.get(process)
        if client is None:
            # Of two threads, one makes a client in vain: it has not connected.
            client = self._clients.setdefault(process, self._make(Client))
        return client

    def async_client(self) -> AsyncClient:
        """Return the client for the running event loop.

        Raises:
            RuntimeError: The process was forked after calls from an event loop.
        """
        loop = asyncio.get_running_loop()
        if not _loop_processes <= {os.getpid()}:
            raise RuntimeError(
                "the process was forked after calls from an event loop, and gRPC would wait for"
                " ever: fork before them, start the process with spawn, or call it from threads"
            )
        for key in list(self._async_clients):
            if key[1].is_closed():
                self._async_clients.pop(key, None)
        key = (os.getpid(), loop)
        client = self._async_clients.get(key)
        if client is None:
            client = self._async_clients[key] = self._make(AsyncClient)
            _loop_processes.add(os.getpid())
        return client

    def close(self) -> None:
        """Close the client for threads; the next call makes another one."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    async def close_async(self) -> None:
        """Close the client for the running event loop; the next call makes another one."""
        key = (os.getpid(), asyncio.get_running_loop())
        client = self._async_clients.pop(key, None)
        if client is not None:
            await client.close()

    def _make(self, kind: type[ClientT]) -> ClientT:
        if self._settings.get("token"):
            return kind(self._target, **self._settings)
        key = self._api_key() if callable(self._api_key) else self._api_key
        return kind(self._target, api_key=key or key_from_environment() or "", **self._settings)

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(type(self), self._target, api_key=self._api_key, **self._settings)
        return make, ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Connection):
            return NotImplemented
        return (self._target, self._settings) == (other._target, other._settings)

    def __hash__(self) -> int:
        return hash(self._target)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def __copy__(self) -> Self:
        return type(self)(self._target, api_key=self._api_key, **self._settings)

    def __deepcopy__(self, _: Any) -> Self:
        return self.__copy__()
