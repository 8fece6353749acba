"""The command that a server suggests once it serves."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from embedgrpc.models.kinds import Kind

_DEFAULT_TARGET = "127.0.0.1:50051"
_CALLS = {
    Kind.EMBEDDING: "embed",
    Kind.CLASSIFIER: "classify",
    Kind.CROSS_ENCODER: 'rerank --query "Where do rivers end?"',
}


def suggest_call(kind: Kind, target: str, tls: Mapping[str, str]) -> str:
    """Return a shell command that calls a model of some kind.

    Args:
        kind: The kind of the model.
        target: The address of the server.
        tls: What the client needs to trust it, by the names of its arguments.
    """
    call = f'echo "Rivers flow to the sea." | {_client()} {_CALLS[kind]}'
    options = {} if target == _DEFAULT_TARGET else {"target": target}
    for name, value in (options | dict(tls)).items():
        call += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    return call


def _client() -> str:
    """Return the client's command for another terminal, which lacks the PATH of `uv run`."""
    # uv sets the path of its own program, and this counter for what `uv run` starts.
    uv = os.environ.get("UV", "")
    if not uv or "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return "embedgrpc-client"
    here = Path.cwd()
    path = Path(uv)
    if path.is_relative_to(here):
        uv = str(path.relative_to(here))
    elif any(Path(folder, "uv") == path for folder in os.get_exec_path()):
        uv = "uv"
    return f"{shlex.quote(uv)} run embedgrpc-client"
