"""LoRA adapters of the Hub: as the source of a model, and named by the key `adapter`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from tests.cli.command import embedgrpc
from tests.models.runner import FIXTURES, copy_fixture, edit_json
from tests.models.sources.hub_host import Host
from tests.models.sources.hub_server import GATED_TOKEN, Hub, Repository

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json")

PROGRAM = """
import sys
from pathlib import Path
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs import graph
from embedgrpc.models.sources.source import resolve
try:
    files = resolve(*sys.argv[2:])
    built = graph.prepare(files, read(files), cache_dir=Path(sys.argv[1]))
except ModelError as error:
    print(type(error).__name__, error)
else:
    print(files.source, files.revision, built.content_hash, files.adapter_source)
"""


def test_the_base_model_of_an_adapter_is_downloaded(
    hub: Hub, host: Host, tmp_path: Path, cache_dir: Path
) -> None:
    """At the revision that the adapter names; the model is that of the same files in folders."""
    local = tmp_path / "adapter"
    local.mkdir()
    config = json.loads((FIXTURES / "lora-qwen3" / "adapter_config.json").read_text())
    (local / "adapter_config.json").write_text(json.dumps(config))
    weights = (FIXTURES / "lora-qwen3" / "adapter_model.safetensors").read_bytes()
    (local / "adapter_model.safetensors").write_bytes(weights)
    base = copy_fixture("qwen3-last", tmp_path, leave_out=["onnx"])
    first = Repository.of_folder(base)
    pinned = first.branches["v1"] = first.branches["main"]
    first.commit({"config.json": b"{}"})
    hub.repositories["org/base"] = first
    config |= {"base_model_name_or_path": "org/base", "revision": "v1"}
    named = {"adapter_config.json": json.dumps(config).encode()}
    hub.repositories["org/adapter"] = Repository.of_folder(local, extra=named)
    done = host.run(PROGRAM, "org/adapter")
    files = resolve(str(base))
    wanted = prepare(files, read(files, ModelOverrides(adapter=str(local))), cache_dir=cache_dir)
    commit = hub.repositories["org/adapter"].branches["main"]
    adapter_source = f"hf:org/adapter@{commit}"
    assert done.out.split() == ["org/adapter", pinned, wanted.content_hash, adapter_source]
    assert "adapter_model.safetensors" in hub.downloads()
    before = len(hub.downloads())
    offline = host.load_one("org/adapter", HF_HUB_OFFLINE="1")
    assert offline["revision"] == pinned
    assert len(hub.downloads()) == before


BASES = {
    "": "base_model_name_or_path must be the repository of the base model",
    None: "base_model_name_or_path must be the repository of the base model",
    "/home/someone/model": "model source 'hf:/home/someone/model'",
    "../model": "model source 'hf:../model'",
    "org/adapter": "which is an adapter itself",
    "org/nobody": "org/nobody",
}


def test_an_adapter_without_a_base_model_is_refused(hub: Hub, host: Host) -> None:
    """The error names the key, or the repository that is missing; no other folder is read."""
    own = {"peft_type": "LORA", "base_model_name_or_path": "org/other", "r": 2}
    bases = {f"org/top{number}": base for number, base in enumerate(BASES)}
    named = {name: own | {"base_model_name_or_path": base} for name, base in bases.items()}
    for name, values in {"org/adapter": own, **named}.items():
        repository = Repository(commits={}, branches={})
        content = json.dumps(values).encode()
        repository.commit({"adapter_config.json": content, "adapter_model.safetensors": b"x"})
        hub.repositories[name] = repository
    hub.repositories["org/other"] = Repository.of_folder(FIXTURES / "bert-mean")
    for base, found in zip(BASES, host.load(*bases), strict=True):
        assert BASES[base] in found["error"]


@dataclass
class Pair:
    """A base model and its adapter, in folders and in repositories with the same names.

    Attributes:
        content_hash: That of the base model with the adapter, from the folders.
        old: The commit of the adapter, which the branch `v1` names; `main` has another.
    """

    base: Path
    adapter: Path
    content_hash: str
    old: str


@pytest.fixture
def pair(hub: Hub, tmp_path: Path, cache_dir: Path) -> Pair:
    """Repositories org/base and org/adapter; the newest commit of the latter is stronger."""
    base = copy_fixture("qwen3-last", tmp_path, leave_out=["onnx"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ADAPTER_FILES:
        shutil.copy(FIXTURES / "lora-qwen3" / name, adapter / name)
    for name in TOKEN_FILES:
        # Adapters of the Hub mostly come with the base model's tokenizer.
        shutil.copy(base / name, adapter / name)
    files = resolve(str(base), str(adapter))
    content_hash = prepare(files, read(files), cache_dir=cache_dir).content_hash
    repository = Repository.of_folder(adapter, extra={"checkpoint-1/optimizer.pt": b"x"})
    old = repository.branches["v1"] = repository.branches["main"]
    edit_json(adapter / ADAPTER_FILES[0], lora_alpha=7)
    changed = (adapter / ADAPTER_FILES[0]).read_bytes()
    repository.commit(repository.commits[old] | {ADAPTER_FILES[0]: changed})
    hub.repositories |= {"org/base": Repository.of_folder(base), "org/adapter": repository}
    return Pair(base, adapter, content_hash, old)


def _run(host: Host, *sources: str, **variables: str) -> str:
    return host.run(PROGRAM, *sources, **variables).out.rstrip("\n")


def test_an_adapter_of_the_hub_is_merged(hub: Hub, host: Host, pair: Pair) -> None:
    """At its revision, into a model of the Hub or of a folder, as one of a folder is."""
    base_commit = hub.repositories["org/base"].branches["main"]
    pinned = f"hf:org/adapter@{pair.old}"
    made = _run(host, "hf:org/base", "hf:org/adapter@v1")
    assert made.split() == ["hf:org/base", base_commit, pair.content_hash, pinned]
    wanted = {*ADAPTER_FILES, *TOKEN_FILES}
    downloads = hub.downloads()
    assert wanted <= set(downloads)
    assert "checkpoint-1/optimizer.pt" not in downloads
    hub.requests.clear()
    folder = _run(host, str(pair.base), f"org/adapter@{pair.old}")
    assert folder.split() == [str(pair.base), pair.content_hash, pinned]
    assert hub.downloads() == []


def test_a_branch_of_an_adapter_is_followed(hub: Hub, host: Host, pair: Pair) -> None:
    """Another commit is another embedding space; offline, the last cached one is used."""
    first = _run(host, str(pair.base), "org/adapter@v1")
    newest = _run(host, str(pair.base), "org/adapter")
    assert first.split()[1] == pair.content_hash != newest.split()[1]
    hub.requests.clear()
    for source, wanted in (("org/adapter@v1", first), ("hf:org/adapter", newest)):
        assert _run(host, str(pair.base), source, HF_HUB_OFFLINE="1") == wanted
    assert hub.requests == []


def test_an_adapter_may_need_a_token(hub: Hub, host: Host, pair: Pair) -> None:
    """HF_TOKEN is sent; without it the error names the adapter and says what to do."""
    hub.repositories["org/adapter"].gated = True
    refused = _run(host, str(pair.base), "hf:org/adapter@v1")
    assert refused.startswith("ModelError adapter 'hf:org/adapter@v1': the repository is gated")
    assert "set HF_TOKEN" in refused
    given = _run(host, str(pair.base), "hf:org/adapter@v1", HF_TOKEN=GATED_TOKEN)
    assert pair.content_hash in given


def test_adapters_that_cannot_be_had(hub: Hub, host: Host, pair: Pair) -> None:
    """Each error is one line that names the adapter, and what to do."""
    base = str(pair.base)
    hub.repositories["org/plain"] = Repository.of_folder(FIXTURES / "bert-mean")
    bare = Repository(commits={}, branches={})
    bare.commit({ADAPTER_FILES[0]: (FIXTURES / "lora-qwen3" / ADAPTER_FILES[0]).read_bytes()})
    hub.repositories["org/bare"] = bare
    other = Repository.of_folder(pair.adapter, extra={TOKEN_FILES[1]: b'{"model_max_length": 9}'})
    hub.repositories["org/other"] = other
    offline = {"HF_HUB_OFFLINE": "1"}
    cases: list[tuple[str, dict[str, str], str]] = [
        ("hf:org/nobody", {}, "ModelError adapter 'hf:org/nobody': the Hub has no such repository"),
        ("org/adapter@v9", {}, "the repository has no such revision"),
        ("org/adapter", offline, f"embedgrpc pull {base} --model-adapter org/adapter` on a host"),
        ("hf:org/plain", {}, "adapter 'hf:org/plain': the repository has no adapter_config.json"),
        ("hf:org/bare", {}, "adapter_model.safetensors is missing"),
        ("hf:org/other", {}, "tokenizer_config.json differs from"),
        ("./nowhere", {}, "ModelError adapter: model source './nowhere' is not a folder here"),
    ]
    for adapter, variables, says in cases:
        assert says in _run(host, base, adapter, **variables)
    unreachable = _run(host, base, "hf:org/adapter", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith("ModelUnavailableError adapter 'hf:org/adapter'")


def test_an_adapter_source_takes_no_other_adapter(hub: Hub, host: Host, pair: Pair) -> None:
    """A source that is an adapter already has one."""
    config = json.loads((FIXTURES / "lora-qwen3" / ADAPTER_FILES[0]).read_text())
    named = config | {"base_model_name_or_path": "org/base"}
    hub.repositories["org/own"] = Repository.of_folder(
        pair.adapter, extra={ADAPTER_FILES[0]: json.dumps(named).encode()}
    )
    refused = _run(host, "org/own", "org/adapter")
    assert refused == (
        "ModelError model source 'org/own' is an adapter, and adapter is set to another"
    )


def test_an_adapter_that_was_not_downloaded_is_refused(pair: Pair) -> None:
    """What reads a folder downloads nothing."""
    with pytest.raises(ModelError, match="adapter 'hf:org/adapter' was not downloaded"):
        read(resolve(str(pair.base)), ModelOverrides(adapter="hf:org/adapter"))


def test_the_commands_take_an_adapter_of_the_hub(
    hub: Hub, pair: Pair, tmp_path: Path, cache_dir: Path
) -> None:
    """`pull` downloads all, and then `inspect` and `verify` need no network."""
    variables = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
    given = ("--model-adapter", "hf:org/adapter@v1", "--cache-dir", cache_dir)
    pulled = embedgrpc("pull", "hf:org/base", *given, **variables)
    assert (pulled.code, pulled.err) == (0, "")
    hub.requests.clear()
    variables["HF_HUB_OFFLINE"] = "1"
    shown = embedgrpc("inspect", "hf:org/base", *given, "--json", **variables)
    assert shown.code == 0, shown
    assert f"hf:org/adapter@{pair.old}" in shown.out
    assert pair.content_hash in shown.out
    verified = embedgrpc("verify", "hf:org/base", *given, "--device", "cpu", **variables)
    assert verified.code == 0, verified
    assert hub.requests == []
    alone = embedgrpc("inspect", "hf:org/base", "--cache-dir", cache_dir, **variables)
    assert alone.code == 0
    assert pair.content_hash not in alone.out


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("hf:org/adapter@v1", ""),
        ("./nowhere", "adapter: model source './nowhere' is not a folder here"),
        (str(FIXTURES / "bert-mean"), "adapter_config.json is missing"),
    ],
)
def test_check_reads_the_key(pair: Pair, adapter: str, says: str) -> None:
    """`check` asks no Hub, but finds folders that are missing or no adapters."""
    path = pair.base.parent / "embedgrpc.toml"
    path.write_text(f'[[models]]\nsource = "{pair.base}"\nadapter = "{adapter}"\n')
    done = embedgrpc("check", "--config", path)
    assert done.code == (2 if says else 0)
    assert says in done.err
