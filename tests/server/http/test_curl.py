"""What curl sends works: the commands of the documentation, and the example of every route."""

import asyncio
import json
import os
import re
import shutil
from typing import Any

import msgspec
import pytest

from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.docs_page import curl
from embedgrpc.server.http.exchange import Route
from embedgrpc.server.settings.model_settings import default_model
from tests.routes_table import DOCUMENT, URL
from tests.server.conftest import Serve
from tests.server.http.example_models import M3, MODELS, model_for
from tests.server.service import Service

_BLOCK = re.compile(r"^```sh\n(curl .*?)^```$", re.MULTILINE | re.DOTALL)
_ANSWERED = re.compile(
    r"^<!-- runnable: embeddings -->\n```sh\n(.*?)^```\n\n```json\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def _run(command: str, service: Service) -> bytes:
    """Run a command as a shell does, against a server; it must get a 2xx."""
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    address = f"http://{service.server.http_address}"
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)),
        env=environment | {"URL": address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0, (command, output[:500], errors)
    return output


def _check(route: Route, output: bytes) -> None:
    if route.media_type == "application/json":
        decoded = msgspec.json.decode(output, type=route.answer)
        assert msgspec.to_builtins(decoded) == json.loads(output)
    else:
        assert output


async def test_the_example_of_every_route(serve: Serve) -> None:
    """Each is answered with 200 and the type of its route."""
    service = await serve(*MODELS, http_address="127.0.0.1:0")
    for route in all_routes():
        command = _choose_model(curl(route, url="$URL"), route.path)
        if "{" in route.path:
            command = command.replace("/ID", f"/{M3.id}")
        _check(route, await _run(command, service))


async def test_the_commands_of_the_page(serve: Serve) -> None:
    """They run as they are, and the first prints what stands below it."""
    text = DOCUMENT.read_text("utf-8")
    ((first, shown),) = _ANSWERED.findall(text)
    service = await serve(default_model(), http_address="127.0.0.1:0")
    answer, vector = _split(json.loads(await _run(first.replace(URL, "$URL"), service)))
    expected, digits = _split(json.loads(shown))
    assert answer == expected
    assert vector == pytest.approx(digits, abs=1e-5)
    other = await serve(*MODELS, http_address="127.0.0.1:0")
    # Those with certificates have a test of their own.
    commands = [one for one in _BLOCK.findall(text) if one != first and "--cacert" not in one]
    assert len(commands) == len({one.handle for one in all_routes() if one.body is not None})
    for command in commands:
        assert URL in command
        (path,) = re.findall(rf"{re.escape(URL)}(\S*)", command)
        await _run(_choose_model(command.replace(URL, "$URL"), path), other)


def _choose_model(command: str, path: str) -> str:
    return command.replace("curl ", f"curl -H 'embedgrpc-model: {model_for(path)}' ", 1)


def _split(answer: Any) -> tuple[Any, list[float]]:
    """Return an answer without what differs by machine, and its vector."""
    (item,) = answer["data"]
    return answer | {"fingerprint": "", "data": [item | {"embedding": []}]}, item["embedding"]
