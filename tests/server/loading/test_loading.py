import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import grpc
import pytest

from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.failures import failure_of
from tests.server.service import EMBED, FIXTURES, serving, settings_for
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING

Harm = Callable[[Path], None]


def _write(name: str, content: bytes) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return harm


def _remove(*names: str) -> Harm:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _halve(name: str) -> Harm:
    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return harm


def _without_graph(harm: Harm) -> Harm:
    def harmed(folder: Path) -> None:
        shutil.rmtree(folder / "onnx")
        harm(folder)

    return harmed


def _nothing(folder: Path) -> None:
    shutil.rmtree(folder)


HARMS: dict[str, Harm] = {
    "no folder": _nothing,
    "config.json is missing": _remove("config.json"),
    "config.json is empty": _write("config.json", b""),
    "config.json is no object": _write("config.json", b"[1, 2]"),
    "config.json is not UTF-8": _write("config.json", b"\xff\xfe{}"),
    "modules.json points outside": _write(
        "modules.json",
        b'[{"idx": 0, "name": "0", "path": "../../../etc", '
        b'"type": "sentence_transformers.models.Pooling"}]',
    ),
    "the tokenizer is missing": _remove("tokenizer.json", "vocab.txt"),
    "tokenizer.json is empty": _write("tokenizer.json", b""),
    "tokenizer.json is an empty object": _write("tokenizer.json", b"{}"),
    "tokenizer.json is cut": _halve("tokenizer.json"),
    "the graph is cut": _halve("onnx/model.onnx"),
    "the graph is garbage": _write("onnx/model.onnx", b"\x00garbage" * 100),
    "the weights are cut": _without_graph(_halve("model.safetensors")),
    "the weights are garbage": _without_graph(_write("model.safetensors", b"\xff" * 1000)),
    "the weights are missing": _without_graph(_remove("model.safetensors")),
}


# One of each file in the default run.
FEW = {
    "no folder",
    "config.json is empty",
    "modules.json points outside",
    "the tokenizer is missing",
    "tokenizer.json is cut",
    "the graph is garbage",
    "the weights are cut",
}


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(harm, id=name, marks=[] if name in FEW else [pytest.mark.slow])
        for name, harm in HARMS.items()
    ],
)
async def test_a_broken_model_fails_alone(
    harm: Harm, tmp_path: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose files cannot be used is FAILED, with its own message; others are served."""
    folder = tmp_path / "broken"
    shutil.copytree(FIXTURES / "bert-cls", folder)
    harm(folder)
    broken = ModelSettings(id="broken", source=str(folder))
    async with serving(settings_for(broken, EMBED, cache_dir=cache_dir)) as service:
        (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
        assert record.getMessage() == "model failed to load"
        assert record.__dict__["model"] == "broken"
        assert str(folder) in record.__dict__["problem"]
        assert "\n" not in record.__dict__["problem"]
        # Only unexpected errors are logged with a stack.
        assert not record.exc_info or not record.exc_info[0]
        failure = await failure_of(service.client.embed("a text", model="broken"))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "BACKEND_UNAVAILABLE"
        await service.client.embed("a text", model="embed")
        assert await service.client.status(f"{EMBEDDING}/broken") == NOT_SERVING
        assert await service.client.status(f"{EMBEDDING}/embed") == SERVING


async def test_a_fault_that_nobody_foresaw_fails_one_model(
    cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any error while a backend is opened leaves the other models served."""

    def open_backend(*_: object) -> None:
        raise ZeroDivisionError("a bug of a library")

    server = Server(
        settings_for(EMBED, cache_dir=cache_dir),
        open_backend=open_backend,  # type: ignore[arg-type]  # it never returns
    )
    async with server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert str(caught.value) == "embed: a bug of a library"
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A cache folder that is a file is one line, not a crash."""
    blocked = tmp_path / "cache"
    blocked.write_text("a file")
    async with Server(settings_for(EMBED, cache_dir=blocked)) as server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert str(blocked) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "device", "problem"),
    [
        (
            {"source": "bert-cls", "weight_type": "float16"},
            "cpu",
            "weight_type float16 runs on cuda alone: set device to cuda",
        ),
        (
            {"source": "bert-cls", "weight_type": "int8"},
            "cuda",
            "weight_type int8 runs on cpu alone: set device to cpu",
        ),
        (
            {"source": "bert-cls", "rerank_method": "hybrid"},
            "cpu",
            "rerank_method hybrid is set, but the model has only dense vectors",
        ),
        (
            {"source": "cross-bert", "rerank_method": "similarity"},
            "cpu",
            "rerank_method is set, but the model is a cross-encoder",
        ),
        (
            {"source": "classify-nli", "rerank_method": "cross_encoder"},
            "cpu",
            "rerank_method is set, but the model is a classifier",
        ),
    ],
)
async def test_settings_that_a_model_cannot_have(
    cache_dir: Path, settings: dict[str, str], device: Literal["cpu", "cuda"], problem: str
) -> None:
    """A setting that the model cannot meet is refused in one line with the model and the key."""
    source = str(FIXTURES / settings["source"])
    model = ModelSettings.model_validate({**settings, "id": "set", "source": source})
    configuration = settings_for(model, cache_dir=cache_dir, device=device)
    async with Server(configuration) as server:
        with pytest.raises(StartError) as caught:
            await server.load()
    assert str(caught.value) == f"set: {problem}"


async def test_a_model_here_has_the_budget_of_the_settings(cache_dir: Path) -> None:
    """A backend in this process sets no limit of its own to the sequences of a batch."""
    settings = settings_for(EMBED, cache_dir=cache_dir, batch_sequences=7, batch_tokens=300)
    async with serving(settings) as service:
        budget = service.server.catalog.find("embed").ready().scheduler.budget
        assert (budget.sequences, budget.tokens) == (7, 300)
