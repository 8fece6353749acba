from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.sources.source import resolve
from tests.cli.command import DEFAULT_MODEL, FIXTURES, embedgrpc, embedgrpc_anew
from tests.models.sources.hub_server import Repository, serve_hub
from tests.triton.environment import Environment
from tests.triton.server import TritonServer


def _config(place: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((place / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_line_for_each_model(tmp_path: Path, cache_dir: Path) -> None:
    """Names are the sources' last parts or those that are given; the flags reach the files."""
    sources = (FIXTURES / "bert-cls", f"minilm={DEFAULT_MODEL}", FIXTURES / "cross-bert")
    flags = ("--cache-dir", cache_dir, "--cores", "6", "--instances", "3", "--max-batch-size", "32")
    folder = tmp_path / "repository"
    done = embedgrpc("triton-repo", *sources, folder, *flags, "--max-queue-delay-us", "500")
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines] == ["bert-cls", "minilm", "cross-bert"]
    assert [line[1] for line in lines] == [str(sources[0]), DEFAULT_MODEL, str(sources[2])]
    for name, source, fingerprint, place in lines:
        assert place == str(folder / name)
        config = _config(Path(place))
        assert config.name == name
        assert config.max_batch_size == 32
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert config.instance_group[0].count == 3
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert parameters["intra_op_thread_count"] == "2"
        assert parameters["embedgrpc_source"] == source
        assert parameters["embedgrpc_fingerprint"] == fingerprint
    again = embedgrpc("triton-repo", *sources, folder, *flags)
    assert (again.code, again.out) == (0, done.out)


@pytest.mark.triton
def test_what_is_written_is_served(
    triton_environment: Environment, tmp_path: Path, cache_dir: Path
) -> None:
    """With its defaults, from another folder: nothing more is to be done to the files."""
    folder = tmp_path / "repository"
    done = embedgrpc("triton-repo", FIXTURES / "xlmr-bge-m3", folder, "--cache-dir", cache_dir)
    assert done.code == 0, done
    moved = folder.rename(tmp_path / "moved")
    with TritonServer(triton_environment, moved, models=()) as server:
        try:
            server.load("xlmr-bge-m3")
        except grpc.RpcError as error:
            pytest.fail(f"{error}\n{server.log}")
        assert server.is_ready("xlmr-bge-m3")


def test_a_model_of_the_hub_is_pinned(tmp_path: Path) -> None:
    """Its commit is written down, so that tokenizer and graph stay of one state."""
    with serve_hub() as hub:
        hub.repositories["acme/gemma"] = Repository.of_folder(FIXTURES / "gemma-dense")
        commit = hub.repositories["acme/gemma"].branches["main"]
        done = embedgrpc(
            *("triton-repo", "acme/gemma@main", tmp_path / "repository"),
            *("--cache-dir", tmp_path / "graphs"),
            HF_HOME=str(tmp_path / "hf"),
            HF_ENDPOINT=hub.url,
        )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"gemma\thf:acme/gemma@{commit}\t")


def test_settings_of_a_model_count(tmp_path: Path, cache_dir: Path) -> None:
    """A configured model is written as the configuration says, by its source or by its name."""
    source = str(FIXTURES / "bert-cls")
    config = tmp_path / "embedgrpc.toml"
    config.write_text(f'[[models]]\nsource = "{source}"\nid = "mine"\npooling = "mean"\n')
    files = resolve(source)
    with_mean = read(files, ModelOverrides(pooling=(Pooling.MEAN,)))
    wanted = identify(files, with_mean, cache_dir=cache_dir).content_hash
    plain = identify(files, read(files), cache_dir=cache_dir).content_hash
    done = embedgrpc_anew(
        *("triton-repo", source, "other=mine", tmp_path / "repository"),
        *("--config", config, "--cache-dir", cache_dir),
    )
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(line[0], line[2]) for line in lines] == [("mine", wanted), ("other", wanted)]
    assert wanted != plain


def test_nothing_foreign_is_replaced(tmp_path: Path, cache_dir: Path) -> None:
    """If one folder was not written by this command, no model is written; one line names it."""
    foreign = tmp_path / "bert-mean"
    (foreign / "1").mkdir(parents=True)
    (foreign / "config.pbtxt").write_text('name: "bert-mean"')
    done = embedgrpc(
        *("triton-repo", FIXTURES / "bert-cls", FIXTURES / "bert-mean", tmp_path),
        *("--cache-dir", cache_dir),
    )
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"embedgrpc: {foreign} was not written by this command")
    assert (foreign / "config.pbtxt").read_text() == 'name: "bert-mean"'
    assert [path.name for path in tmp_path.iterdir()] == ["bert-mean"]


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path, cache_dir: Path) -> None:
    """The others are written all the same, and the exit code is 1."""
    done = embedgrpc(
        *("triton-repo", FIXTURES / "bert-cls", "./nothing", tmp_path / "repository"),
        *("--cache-dir", cache_dir),
    )
    assert done.code == 1
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["bert-cls"]
    (line,) = done.err.splitlines()
    assert line.startswith("embedgrpc: model source './nothing' is not a folder here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a=./x", "a=./y"), "two models are called 'a': ./x and ./y"),
        (("--instances", "9", "--cores", "4", "./x"), "instances 9 is more than cores 4"),
        (("--tensorrt", "float16", "./x"), "set kind to gpu"),
        (("--max-batch-size", "0", "./x"), "must be 1 to 65536, not 0"),
        (("--cores", "many", "./x"), "must be 1 to 1024, not many"),
        (("./a b",), "no model id can be derived from './a b'"),
        ((), "required: DIR"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """Nothing is written, and the line says what to change."""
    done = embedgrpc("triton-repo", *arguments, tmp_path / "repository")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "repository").exists()
