import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import Format, WeightFile, find_external
from tests.models.runner import FIXTURES, copy_fixture, edit_json
from tests.models.sources.hub_host import PROGRAM, Host
from tests.models.sources.hub_server import GATED_TOKEN, Hub, Repository
from tests.warm_python import run_warm

MIB = 1024 * 1024
PROGRESS_PROGRAM = """
import json, sys
from embedgrpc.models.progress import reporter
reporter.display = lambda *report: sys.stdout.write(json.dumps(report) + chr(10))
"""
SERVED_PROGRAM = """
import sys
from pathlib import Path
from embedgrpc.models.folder import properties
from embedgrpc.models.sources import source
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.remote.fingerprint import find_fingerprint
files = source.resolve(sys.argv[2])
read = properties.read(files, served=ServedTokenOutputs(True, True, 0))
print(find_fingerprint(
    files, read, ModelOverrides(), declared="f", place=(), cache_dir=Path(sys.argv[1])
).value)
"""
# Errors that a retry may solve, and others.
TEMPORARY, PERMANENT = "ModelUnavailableError", "ModelError"
UNWANTED = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"weights",
    "tf_model.h5": b"weights",
    "flax_model.msgpack": b"weights",
    "onnx/model_fp16.onnx": b"graph",
    "onnx/model_quantized.onnx": b"graph",
    "onnx/model.onnx_data_of_another": b"weights",
    "openvino/openvino_model.bin": b"weights",
    "train_script.py": b"",
    "1_Pooling/README.md": b"",
}


def without_weights(name: str) -> set[str]:
    """Return the files of a fixture that describe the model."""
    left_out = {"expected.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"}
    paths = [path for path in (FIXTURES / name).rglob("*") if path.is_file()]
    names = {path.relative_to(FIXTURES / name).as_posix() for path in paths}
    return {one for one in names if one.endswith(".json")} - left_out


def test_only_needed_files_are_downloaded(hub: Hub, host: Host) -> None:
    """Downloads are JSON files, the card, heads, and an ONNX export or safetensors."""
    wanted = {
        "gemma-dense": {
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "2_Dense/model.safetensors",
            "3_Dense/model.safetensors",
        },
        "bert-mean": {"model.safetensors"},
        "xlmr-bge-m3": {
            "onnx/model.onnx",
            "sparse_linear.safetensors",
            "colbert_linear.safetensors",
        },
    }
    for name in wanted:
        hub.repositories[f"acme/{name}"] = Repository.of_folder(FIXTURES / name, extra=UNWANTED)
    results = host.load(*(f"acme/{name}" for name in wanted))
    assert [result.get("error") for result in results] == [None] * 3
    described = {"README.md"}
    expected = [one for name in wanted for one in wanted[name] | without_weights(name) | described]
    assert hub.downloads() == sorted(expected)


def test_a_vocabulary_is_downloaded_if_it_is_needed(hub: Hub, host: Host, tmp_path: Path) -> None:
    """Without `tokenizer.json`, `vocab.txt` is downloaded, and the model is served."""
    folder = copy_fixture("bert-mean", tmp_path, leave_out=["tokenizer.json"])
    hub.repositories["acme/vocabulary"] = Repository.of_folder(folder)
    (result,) = host.load("acme/vocabulary")
    assert "error" not in result
    assert "vocab.txt" in hub.downloads()


def test_the_settings_of_colbert_are_downloaded(hub: Hub, host: Host) -> None:
    """A checkpoint of ColBERT's authors comes with their file of settings."""
    hub.repositories["acme/colbert"] = Repository.of_folder(FIXTURES / "colbert-bert")
    assert "error" not in host.load_one("acme/colbert")
    assert "artifact.metadata" in hub.downloads()


@pytest.mark.parametrize("name", ["gemma-dense", "xlmr-bge-m3"])
def test_no_backbone_is_downloaded_for_a_server(hub: Hub, host: Host, name: str) -> None:
    """For a model on a server, neither graph nor weights of the backbone are downloaded."""
    hub.repositories[f"acme/{name}"] = Repository.of_folder(FIXTURES / name, extra=UNWANTED)
    assert host.run(SERVED_PROGRAM, f"acme/{name}").out == "f\n"
    assert not [one for one in hub.downloads() if "onnx" in one or one.startswith("model.")]
    assert without_weights(name) <= set(hub.downloads())


@pytest.mark.parametrize("name", ["router-mixed", "router-nested", "asym-dense"])
def test_routes_are_downloaded(hub: Hub, host: Host, name: str) -> None:
    """The files of every route are downloaded, each only once, as are files that are equal."""
    hub.repositories[f"acme/{name}"] = Repository.of_folder(FIXTURES / name, extra=UNWANTED)
    assert "error" not in host.load_one(f"acme/{name}")
    weights = (FIXTURES / name).rglob("*.safetensors")
    names = {path.relative_to(FIXTURES / name).as_posix() for path in weights}
    repository = hub.repositories[f"acme/{name}"]
    content = repository.commits[repository.branches["main"]]
    wanted = names | without_weights(name) | {"README.md"}
    downloads = hub.downloads()
    assert set(downloads) <= wanted
    assert {content[one] for one in downloads} == {content[one] for one in wanted}
    assert len(downloads) == len({content[one] for one in wanted})


def test_the_layer_of_a_colbert_export_is_downloaded(
    hub: Hub, host: Host, tmp_path: Path, cache_dir: Path
) -> None:
    """The export has the backbone alone; the projection is in the checkpoint beside it."""
    plain = copy_fixture("colbert-bert", tmp_path, leave_out=["artifact.metadata"])
    edit_json(plain / "config.json", architectures=["BertModel"])
    files = resolve(str(plain))
    overrides = ModelOverrides(pooling=(Pooling.MEAN,), normalize=False)
    graph = onnx.load(prepare(files, read(files, overrides), cache_dir=cache_dir).path)
    graph.graph.node.append(
        onnx.helper.make_node("Identity", ["token_vectors"], ["last_hidden_state"])
    )
    del graph.graph.output[:]
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info(
            "last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "tokens", 32]
        )
    )
    export = {"onnx/model.onnx": graph.SerializeToString()}
    repository = Repository.of_folder(FIXTURES / "colbert-bert", extra=export)
    hub.repositories["acme/colbert"] = repository
    assert "error" not in host.load_one("acme/colbert")
    assert {"onnx/model.onnx", "model.safetensors"} <= set(hub.downloads())


def test_shards_are_downloaded(hub: Hub, host: Host) -> None:
    """The files that an index names are downloaded, and no similar ones."""
    tensors = load_file(FIXTURES / "bert-mean" / "model.safetensors")
    shards = {f"model-0000{i}-of-00002.safetensors": list(tensors)[i - 1 :: 2] for i in (1, 2)}
    files = {name: save({key: tensors[key] for key in keys}) for name, keys in shards.items()}
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    repository = Repository.of_folder(FIXTURES / "bert-mean")
    content = dict(repository.commits[repository.branches["main"]])
    del content["model.safetensors"]
    content |= files | {"model.safetensors.index.json": json.dumps(index).encode()}
    repository.commit(content | {"model-00003-of-00002.safetensors": b"weights"})
    hub.repositories["acme/shards"] = repository
    assert "error" not in host.load_one("hf:acme/shards")
    weights = [name for name in hub.downloads() if name.startswith("model")]
    assert weights == [*sorted(shards), "model.safetensors.index.json"]


@pytest.mark.long
def test_a_second_start_downloads_nothing(hub: Hub, host: Host) -> None:
    """A branch is resolved again, a commit is not; offline there are no requests."""
    hub.repositories["acme/gemma"] = Repository.of_folder(FIXTURES / "gemma-dense")
    first = host.load_one("hf:acme/gemma")
    commit = hub.repositories["acme/gemma"].branches["main"]
    assert first["revision"] == commit
    hub.requests.clear()
    assert host.load_one("hf:acme/gemma") == first
    assert hub.requests == ["GET /api/models/acme/gemma"]
    hub.requests.clear()
    assert host.load_one(f"hf:acme/gemma@{commit}") == first
    offline = host.load(
        "hf:acme/gemma", "acme/gemma", f"acme/gemma@{commit}", "acme/gemma@main", HF_HUB_OFFLINE="1"
    )
    assert offline == [first] * 4
    # Older releases of the library did not cache the listings of repositories.
    shutil.rmtree(host.home / "hub/models--acme--gemma/trees")
    assert host.load_one("acme/gemma", HF_HUB_OFFLINE="1") == first
    assert hub.requests == []
    assert host.errors == ""


def test_a_revision_is_pinned(hub: Hub, host: Host) -> None:
    """A commit, a tag and a branch have their own files; equal files are cached once."""
    repository = Repository.of_folder(FIXTURES / "bert-mean")
    old = repository.branches["main"]
    changed = repository.commits[old] | {"config_sentence_transformers.json": b'{"prompts": {}}'}
    new = repository.commit(changed)
    repository.branches |= {"v1": old, "refs/pr/2": new}
    hub.repositories["acme/bert"] = repository
    pinned, tagged = host.load(f"hf:acme/bert@{old}", "hf:acme/bert@v1")
    assert pinned == tagged
    assert pinned["revision"] == old
    hub.requests.clear()
    newest, branch = host.load("acme/bert", "acme/bert@refs/pr/2")
    assert newest == branch
    assert newest["revision"] == new
    assert hub.downloads() == ["config_sentence_transformers.json"]
    blobs = list((host.home / "hub/models--acme--bert/blobs").iterdir())
    assert len(blobs) == len({hashlib.sha256(blob.read_bytes()).digest() for blob in blobs})


@pytest.mark.long
def test_a_branch_is_followed(hub: Hub, host: Host) -> None:
    """With network the newest commit is used, without it the last cached one."""
    repository = hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    old = repository.branches["main"]
    assert host.load_one("acme/bert")["revision"] == old
    new = repository.commit(repository.commits[old] | {"notes.txt": b"new"})
    assert host.load_one("acme/bert", HF_HUB_OFFLINE="1")["revision"] == old
    assert host.load_one("acme/bert")["revision"] == new
    assert host.load_one("acme/bert", HF_ENDPOINT="http://127.0.0.1:9")["revision"] == new


def test_a_broken_download_is_resumed(hub: Hub, host: Host) -> None:
    """A download that broke off continues where it stopped."""
    # The library writes downloads in chunks of 10 MiB.
    tensors = load_file(FIXTURES / "bert-mean" / "model.safetensors")
    content = save(tensors | {"unused": np.zeros(24 * MIB, np.uint8)})
    extra = {"model.safetensors": content}
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean", extra=extra)
    hub.break_once = {"model.safetensors"}
    result = host.load_one("acme/bert")
    assert (Path(result["folder"]) / "model.safetensors").read_bytes() == content
    assert hub.ranges == {"model.safetensors": f"bytes={10 * MIB}-"}
    assert hub.downloads().count("model.safetensors") == 2


def test_a_download_that_failed_is_continued(hub: Hub, host: Host) -> None:
    """Downloaded files are kept if the Hub fails; offline the error names the missing file."""
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    hub.failing = {"model.safetensors"}
    assert "the Hub refused access (HTTP 403)" in host.load_one("acme/bert")["error"]
    offline = host.load_one("acme/bert", HF_HUB_OFFLINE="1")["error"]
    assert "Hub: model.safetensors is not in the cache" in offline
    assert "run `embedgrpc pull acme/bert` on a host with network" in offline
    hub.failing.clear()
    hub.requests.clear()
    assert "error" not in host.load_one("acme/bert")
    assert hub.downloads() == ["model.safetensors"]


def test_a_token_gives_access(hub: Hub, host: Host) -> None:
    """HF_TOKEN is sent; without it the error says what to do."""
    gated = Repository.of_folder(FIXTURES / "bert-mean")
    gated.gated = True
    private = Repository.of_folder(FIXTURES / "bert-cls")
    private.private = True
    hub.repositories |= {"acme/gated": gated, "acme/private": private}
    refused, hidden = host.load("hf:acme/gated", "hf:acme/private")
    assert "is gated: accept its terms" in refused["error"]
    assert "set HF_TOKEN" in refused["error"]
    assert "check the name, and set HF_TOKEN" in hidden["error"]
    results = host.load("hf:acme/gated", "hf:acme/private", HF_TOKEN=GATED_TOKEN)
    assert not [result for result in results if "error" in result]


def test_missing_repositories_and_files(hub: Hub, host: Host) -> None:
    """Each error is one line that names the source and says what to change."""
    whole = Repository.of_folder(FIXTURES / "bert-mean")
    files = whole.commits[whole.branches["main"]]
    without = {
        "config": {"README.md": b""},
        "weights": {name: content for name, content in files.items() if "model.s" not in name},
        "data": Repository.of_folder(FIXTURES / "gemma-dense").commits.popitem()[1],
    }
    del without["data"]["onnx/model.onnx_data"]
    hub.repositories["acme/bert"] = whole
    for name, content in without.items():
        hub.repositories[f"acme/{name}"] = Repository(commits={}, branches={})
        hub.repositories[f"acme/{name}"].commit(content)
    wanted = {
        "hf:acme/nothing": "the Hub has no such repository",
        "acme/nothing": "'acme/nothing', which is no folder here but may be a repository",
        "hf:acme/bert@v9": "no such revision: give a branch, a tag or a commit",
        f"hf:acme/bert@{'0' * 40}": "no such revision",
        "hf:acme/bert--x": "this is not a valid repository name",
        "hf:acme/config": "the repository has no config.json at commit",
        "hf:acme/weights": "has no onnx/model.onnx and no model.safetensors at commit",
        "hf:acme/data": "external data 'model.onnx_data' is missing",
    }
    results = host.load(*wanted)
    # A retry solves none of these.
    assert {result.get("kind") for result in results} == {"ModelError"}
    messages = [result.get("error", "") for result in results]
    for message, part in zip(messages, wanted.values(), strict=True):
        assert part in message
        assert "\n" not in message
    assert not [name for name in hub.downloads() if name == "model.safetensors"]


@pytest.mark.long
def test_failures_of_the_hub(hub: Hub, host: Host, tmp_path: Path) -> None:
    """Server errors, no network, an empty cache offline, and a cache that cannot be written."""
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    for status, kind in ((503, TEMPORARY), (429, TEMPORARY), (410, PERMANENT)):
        hub.status = status
        result = host.load_one("hf:acme/bert")
        assert f"HTTP {status}" in result["error"]
        assert result["kind"] == kind
    hub.status = 0
    cases: list[tuple[dict[str, str], str, str]] = [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network and HF_ENDPOINT", TEMPORARY),
        ({"HF_HUB_OFFLINE": "1"}, "is not in the cache", PERMANENT),
    ]
    for variables, part, kind in cases:
        result = host.load_one("hf:acme/bert", **variables)
        message = result["error"]
        assert result["kind"] == kind
        assert part in message
        assert "run `embedgrpc pull hf:acme/bert` on a host with network" in message
        assert "\n" not in message
    (tmp_path / "file").write_text("in the way")
    message = host.load_one("hf:acme/bert", HF_HOME=str(tmp_path / "file"))["error"]
    assert "cannot be written" in message
    assert "set HF_HOME to another folder" in message


def test_a_full_disk(hub: Hub, host: Host) -> None:
    """The error names the cache, and no incomplete file is left."""
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    command = [sys.executable, "-c", PROGRAM, str(host.cache_dir), "acme/bert"]
    # In units of 1024 bytes: more than the JSON files, and less than the weights.
    limited = ["bash", "-c", 'ulimit -f 128; exec "$@"', "bash", *command]
    done = subprocess.run(
        limited, env=host.environment({}), check=True, capture_output=True, text=True
    )
    message = json.loads(done.stdout)["error"]
    assert f"the cache {host.home / 'hub'} cannot be written: File too large" in message
    assert "free some space, or set HF_HOME" in message
    assert not list(host.home.rglob("*.incomplete"))


@pytest.mark.long
def test_a_truncated_file(hub: Hub, host: Host) -> None:
    """The error for a cached file of the wrong size says what to delete."""
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    path = Path(host.load_one("acme/bert")["folder"]) / "model.safetensors"
    size = path.stat().st_size
    path.resolve().write_bytes(path.read_bytes()[:1000])
    message = host.load_one("acme/bert", HF_HUB_OFFLINE="1")["error"]
    assert f"{path} has 1000 of {size} bytes: delete {path.resolve()}" in message
    path.resolve().unlink()
    assert "error" not in host.load_one("acme/bert")
    assert path.stat().st_size == size


def test_a_folder_wins_over_the_hub(hub: Hub, host: Host, tmp_path: Path) -> None:
    """A folder of the same name is used without requests to the Hub."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "bert").symlink_to(FIXTURES / "bert-mean")
    program = (
        "from embedgrpc.models.sources.source import resolve; print(resolve('acme/bert').folder)"
    )
    done = run_warm(program, environment=host.environment({}), folder=tmp_path)
    assert Path(done.out.strip()) == FIXTURES / "bert-mean", done
    assert hub.requests == []


def test_progress_is_reported_and_not_drawn(hub: Hub, host: Host) -> None:
    """The bytes that come are reported for one bar; the library draws none, even on a terminal."""
    hub.repositories["acme/bert"] = Repository.of_folder(FIXTURES / "bert-mean")
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRESS_PROGRAM + PROGRAM, str(host.cache_dir), "acme/bert"],
        env=host.environment({}),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        reports = [json.loads(line) for line in process.stdout or () if line.startswith("[")]
        drawn = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert drawn == b""
    size = (FIXTURES / "bert-mean" / "model.safetensors").stat().st_size
    weights = [done for what, done, total in reports if total == size and "acme/bert" in what]
    assert weights[-1] == size
    assert len(weights) > 1


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end was closed
        return b""


def cached(tmp_path: Path, *, target: str, place: str = "hub/models--a--b") -> WeightFile:
    """Make a graph in a snapshot whose external data is a link to the target."""
    repository = tmp_path / place
    folder = repository / "snapshots" / ("0" * 40)
    (folder / "onnx").mkdir(parents=True)
    path = tmp_path / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    (folder / "onnx" / "model.onnx_data").symlink_to(path)
    return WeightFile(Format.ONNX, folder, folder, folder / "onnx" / "model.onnx", "")


def test_external_data_may_be_a_link_into_the_cache(tmp_path: Path) -> None:
    """A snapshot may link to the blobs of its repository."""
    weight_file = cached(tmp_path, target="hub/models--a--b/blobs/abc")
    assert find_external(weight_file, "model.onnx_data").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "places",
    [
        {"target": "hub/models--a--c/blobs/abc"},
        {"target": "hub/models--a--b/blobs/deeper/abc"},
        {"target": "hub/models--a--b/refs/abc"},
        {"target": "hub/models--a--b/snapshots/other/abc"},
        {"target": "blobs/abc"},
        {"target": "hub/datasets--a--b/blobs/abc", "place": "hub/datasets--a--b"},
        {"target": "secret"},
    ],
    ids=lambda places: places["target"],
)
def test_other_links_are_refused(tmp_path: Path, places: dict[str, Any]) -> None:
    """Links to other places are refused, also within the cache."""
    with pytest.raises(ModelError, match="leads out of the model folder"):
        find_external(cached(tmp_path, **places), "model.onnx_data")


def test_a_blob_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """The target of a blob that is a link counts."""
    weight_file = cached(tmp_path, target="hub/models--a--b/blobs/abc")
    blob = tmp_path / "hub/models--a--b/blobs/abc"
    blob.rename(tmp_path / "secret")
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of the model folder"):
        find_external(weight_file, "model.onnx_data")


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Files of a snapshot may be links to blobs, folders may not."""
    weight_file = cached(tmp_path, target="hub/models--a--b/blobs/abc")
    (weight_file.path.parent / "data").symlink_to(tmp_path / "hub/models--a--b/blobs")
    with pytest.raises(ModelError, match="leads out of the model folder"):
        find_external(weight_file, "data/abc")
