"""Settings that a database or an index writes down: without secrets, in JSON."""

import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from embedgrpc.client.errors import ModelChangedError
from embedgrpc.client.integrations.connection import Connection, connection_to
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE, ApiKey, key_from_environment

# Metadata may hold a key, too.
_NEVER_WRITTEN: Final = ("api_key", "token", "credentials", "metadata")


def connect(
    target: str,
    client_settings: Mapping[str, Any] | None = None,
    *,
    api_key_env_var: str = API_KEY_VARIABLE,
    api_key: ApiKey | None = None,
) -> Connection:
    """Return the connection to a server whose settings are written down.

    Args:
        target: HOST:PORT or unix:PATH.
        client_settings: Other arguments of `Client`, such as `tls` and `timeout_s`.
        api_key_env_var: The environment variable that holds the API key of the caller.
        api_key: The key, where the framework itself keeps it out of what it writes.

    Raises:
        TypeError: There is no such setting, one has the wrong type, or it may hold a secret.
        ValueError: The target is no address, or settings do not fit.
    """
    chosen = dict(client_settings or {})
    for name in _NEVER_WRITTEN:
        if name in chosen:
            raise TypeError(
                f"{name} would be written down; set the environment variable {api_key_env_var}"
            )
    require_json("client_settings", chosen)
    key = api_key or functools.partial(key_from_environment, api_key_env_var)
    return connection_to(target, chosen, api_key=key)


def require_fingerprint(embedder: Embedder, fingerprint: str) -> None:
    """Check that the server has the model whose vectors were written; "" for any.

    Raises:
        ModelChangedError: It has another one.
        EmbedGrpcError: The call failed.
    """
    if not fingerprint:
        return
    described = embedder.describe()
    if described.fingerprint != fingerprint:
        raise ModelChangedError(
            f"the model {described.id!r} of the server makes other vectors than those that were"
            f" written: its fingerprint is {described.fingerprint}, not {fingerprint}",
            metadata={"fingerprint": described.fingerprint, "was": fingerprint},
        )


def require_json(name: str, value: Any) -> None:
    """Check that a value comes back from JSON as it was.

    Raises:
        TypeError: It does not.
    """
    try:
        is_same = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise TypeError(f"{name} cannot be written as JSON: give only str, numbers, bool and lists")
