"""What the integrations are tested with: the frameworks, and servers for them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from tests.clients.environment import ROOT, EnvironmentMissingError, find_frameworks
from tests.server.identity.callers import KeyFile
from tests.service.conftest import FIXTURES, running_server

# Nothing is sent to anybody but the server.
_QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "RAGAS_DO_NOT_TRACK": "true",
}
# The first, which is the default, has other prompts for queries than for documents.
_MODELS = {
    "embed": str(FIXTURES / "bert-prompt-left-out"),
    "minilm": DEFAULT_MODEL.source,
    "cross": str(FIXTURES / "cross-bert"),
    "splade": str(FIXTURES / "splade-bert"),
    # As the documentation names them.
    "bge-reranker-v2-m3": str(FIXTURES / "cross-bert"),
    "splade-v3": str(FIXTURES / "splade-bert"),
}


@pytest.fixture(scope="session")
def frameworks(request: pytest.FixtureRequest) -> Path:
    """The interpreter of the environment that a test is parametrized with."""
    try:
        return find_frameworks(request.param)
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


@pytest.fixture(scope="session")
def served(
    cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    """The variables of a program that uses a framework, which name two servers.

    SERVED_TARGET serves all models, KEYED_TARGET the first one to callers with KEYED_KEY.
    """
    flags = [flag for name, source in _MODELS.items() for flag in ("--model", f"{name}={source}")]
    keys = KeyFile(tmp_path_factory.mktemp("keys"))
    key = keys.add("one")
    keyed_flags = ("--api-keys-file", str(keys.path), *flags[:2])
    with (
        running_server(*flags, cache_dir=cache_dir) as target,
        running_server(*keyed_flags, cache_dir=cache_dir) as keyed_target,
    ):
        yield {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path_factory.mktemp("home")),
            **_QUIET,
            # Its own client, whatever checkout the environment was made from.
            "PYTHONPATH": f"{ROOT / 'clients/python/src'}{os.pathsep}{ROOT}",
            "SERVED_TARGET": target,
            "KEYED_TARGET": keyed_target,
            "KEYED_KEY": key,
            # The files of two of the models, for the libraries that they are compared with.
            "EMBED_FOLDER": _MODELS["embed"],
            "CROSS_FOLDER": _MODELS["cross"],
        }
