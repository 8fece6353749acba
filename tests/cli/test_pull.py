import json
from pathlib import Path

import pytest

from tests.cli.command import DEFAULT_MODEL, FIXTURES, embedgrpc, embedgrpc_anew
from tests.models.sources.hub_server import Repository, serve_hub


def test_a_pulled_model_is_served_without_network(tmp_path: Path) -> None:
    """One line a model; then everything is there, and offline nothing is asked."""
    home, cache = tmp_path / "hf", tmp_path / "graphs"
    with serve_hub() as hub:
        hub.repositories["acme/gemma"] = Repository.of_folder(
            FIXTURES / "gemma-dense", extra={"README.md": b"# A model"}
        )
        commit = hub.repositories["acme/gemma"].branches["main"]
        variables = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url}
        pulled = embedgrpc("pull", "acme/gemma", "--cache-dir", cache, **variables)
        assert (pulled.code, pulled.err) == (0, "")
        source, revision, folder, size = pulled.out.rstrip("\n").split("\t")
        assert (source, revision) == ("acme/gemma", commit)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert int(size) == sum(path.stat().st_size for path in files)
        assert {path.name for path in files} >= {"model.onnx", "model.onnx_data"}
        graphs = {path: path.stat().st_mtime_ns for path in cache.rglob("model.onnx")}
        assert graphs
        hub.requests.clear()
        offline = embedgrpc(
            "verify", "acme/gemma", "--cache-dir", cache, HF_HUB_OFFLINE="1", **variables
        )
        assert offline.code == 0, offline
        assert hub.requests == []
        assert {path: path.stat().st_mtime_ns for path in cache.rglob("model.onnx")} == graphs


def test_a_download_is_logged(tmp_path: Path, cache_dir: Path) -> None:
    """The log has one line for each download, not one for each request."""
    with serve_hub() as hub:
        hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-cls")
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        base = ("verify", "acme/bert", "--device", "cpu", "--cache-dir", cache_dir)
        done = embedgrpc(*base, EMBEDGRPC_LOG_LEVEL="debug", **variables)
    assert done.code == 0
    lines = [json.loads(line) for line in done.err.splitlines()]
    told = [line for line in lines if line["event"] == "downloading"]
    assert {line["repository"] for line in told} == {"acme/bert"}
    size = (FIXTURES / "bert-cls/onnx/model.onnx").stat().st_size
    assert (told[-1]["files"], told[-1]["bytes"]) == (1, size)
    assert hub.url not in done.err


def test_what_cannot_be_pulled_is_told(cache_dir: Path) -> None:
    """The others are pulled all the same, and the exit code is 1."""
    sources: list[str | Path] = [FIXTURES / "bert-cls", "./nothing", DEFAULT_MODEL]
    done = embedgrpc("pull", *sources, "--cache-dir", cache_dir)
    assert done.code == 1
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [
        str(FIXTURES / "bert-cls"),
        DEFAULT_MODEL,
    ]
    (line,) = done.err.splitlines()
    assert line.startswith("embedgrpc: model source './nothing' is not a folder here")


def test_a_source_without_a_name_stops_no_other(tmp_path: Path, cache_dir: Path) -> None:
    """Each gets its own line; with an id before it, the folder can be pulled."""
    folder = tmp_path / "my model"
    folder.symlink_to(FIXTURES / "bert-cls")
    named = f"m={folder}"
    done = embedgrpc("pull", folder, "", "triton://h:1/m", named, "--cache-dir", cache_dir)
    assert done.code == 1
    first, second, third = done.err.splitlines()
    assert first.endswith(
        f"no model id can be derived from {str(folder)!r}: give one with ID=SOURCE"
    )
    assert second == "embedgrpc: model '': source: must not be empty"
    assert "model source 'triton://h:1/m': " in third
    (line,) = done.out.splitlines()
    assert line.startswith(f"{named}\t")


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("source", ["./my model", "", "triton://h:1/m", "m=triton://h:1/m"])
def test_the_other_commands_tell_it_too(command: str, source: str) -> None:
    """One line, and the exit code for a model that cannot be served."""
    done = embedgrpc(command, source)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("embedgrpc: ")


def test_wrong_settings_are_told_apart() -> None:
    """A setting that cannot be used, and a command line that cannot, exit with 2."""
    done = embedgrpc("pull", "acme/bert", EMBEDGRPC_LANES="many")
    assert (done.code, done.out) == (2, "")
    assert "lanes (EMBEDGRPC_LANES)" in done.err
    assert embedgrpc("pull").code == 2


def test_the_cache_dir_is_a_setting(tmp_path: Path) -> None:
    """The variable is read, as for `serve`."""
    done = embedgrpc_anew("pull", FIXTURES / "bert-cls", EMBEDGRPC_CACHE_DIR=str(tmp_path / "here"))
    assert done.code == 0, done
    assert list((tmp_path / "here").rglob("model.onnx"))
