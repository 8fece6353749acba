import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.cli.main import main
from embedgrpc.models.folder import properties
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.sources import source
from tests.cli.command import DEFAULT_MODEL, FIXTURES, embedgrpc
from tests.models.breaking import edit_graph, ignore_mask
from tests.models.runner import copy_fixture, edit_json

EXTRAS = "config_sentence_transformers.json"
EXPECTED: dict[str, dict[str, tuple[Any, str | None]]] = {
    "gemma-dense": {
        "kind": ("embedding", "modules.json"),
        "model_type": ("gemma3_text", "config.json: model_type"),
        "weights": (["onnx/model.onnx", "onnx/model.onnx_data"], None),
        "weights_format": ("onnx", None),
        "weights_type": ("float32", None),
        "weights_bytes": (459968, None),
        "tokenizer": ("tokenizer.json", None),
        "max_tokens": (128, "sentence_bert_config.json: max_seq_length"),
        "poolings": (["mean"], "1_Pooling/config.json: pooling_mode_mean_tokens"),
        "normalize": (True, "modules.json"),
        "dimensions": (36, "3_Dense/config.json: out_features"),
        "similarity": ("cosine", f"{EXTRAS}: similarity_fn_name"),
        "padding_side": ("right", "default"),
        "rerank_method": ("similarity", None),
    },
    "bert-st54": {
        "weights_format": ("safetensors", None),
        "poolings": (["cls"], "1_Pooling/config.json: pooling_mode"),
        "dimensions": (32, "1_Pooling/config.json: embedding_dimension"),
    },
    "bert-truncation-left": {
        "truncation": ("start", "tokenizer_config.json: truncation_side"),
    },
    "qwen3-last": {
        "padding_side": ("right", "default"),
        "poolings": (["lasttoken"], "1_Pooling/config.json: pooling_mode_lasttoken"),
    },
    "xlmr-bge-m3": {
        "representations": (
            ["dense", "sparse", "multi_vector"],
            "modules.json, sparse_linear.safetensors, colbert_linear.safetensors",
        ),
        "sparse_dimensions": (1400, "config.json: vocab_size"),
        "multi_vector_dimensions": (32, "colbert_linear.safetensors: weight"),
        "rerank_method": ("hybrid", None),
    },
    "cross-bert": {
        "kind": ("cross_encoder", "config.json: architectures"),
        "max_tokens": (96, "tokenizer_config.json: model_max_length"),
        "activation": ("sigmoid", "default"),
        "rerank_method": ("cross_encoder", None),
    },
}


def inspect(folder: str | Path, cache_dir: Path) -> dict[str, Any]:
    """Return the properties that the command prints as JSON."""
    done = embedgrpc("inspect", folder, "--json", "--cache-dir", cache_dir)
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_model_is_and_which_file_says_so(name: str, cache_dir: Path) -> None:
    """Each field has the value that is used, and the file and key that it comes from."""
    found = inspect(FIXTURES / name, cache_dir)
    wanted = EXPECTED[name]
    assert {key: (found[key]["value"], found[key]["from"]) for key in wanted} == wanted
    files = source.resolve(str(FIXTURES / name))
    read = properties.read(files)
    assert found["max_tokens"]["value"] == read.max_tokens
    prepared = identify(files, read, cache_dir=cache_dir)
    assert found["fingerprint"]["value"] == prepared.content_hash


def test_other_places_are_named(tmp_path: Path, cache_dir: Path) -> None:
    """Where another file says it, that file is named; where none does, it is a default."""
    folder = copy_fixture("bert-mean", tmp_path)
    limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    edit_json(folder / "sentence_bert_config.json", max_seq_length=limit + 1)
    edit_json(folder / EXTRAS, prompts={"query": "find: "}, default_prompt_name="query")
    found = inspect(folder, cache_dir)
    assert found["max_tokens"] == {"value": limit, "from": "config.json: max_position_embeddings"}
    assert found["prompts"] == {"value": {"query": "find: "}, "from": f"{EXTRAS}: prompts"}
    assert found["default_prompt_name"]["from"] == f"{EXTRAS}: default_prompt_name"
    assert inspect(FIXTURES / "bert-mean", cache_dir)["prompts"]["value"] == {}


def test_it_reads_well(cache_dir: Path) -> None:
    """Without --json each line is a name, a value and a file, in columns."""
    done = embedgrpc("inspect", DEFAULT_MODEL, "--cache-dir", cache_dir)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert f"{'source':<19}  {DEFAULT_MODEL}" in lines
    assert f"{'weights_bytes':<19}  90868376" in lines
    column = lines[0].index(DEFAULT_MODEL)
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
    (line,) = [line for line in lines if line.startswith("max_tokens ")]
    assert line.split() == ["max_tokens", "256", "sentence_bert_config.json:", "max_seq_length"]


def test_a_configured_model_is_found_by_its_name(tmp_path: Path, cache_dir: Path) -> None:
    """A configured model is found by its id, and its configured keys are shown."""
    config = tmp_path / "embedgrpc.toml"
    config.write_text(
        f'[[models]]\nid = "tiny"\nsource = "{FIXTURES / "bert-cls"}"\nmax_tokens = 7\n'
    )
    done = embedgrpc("inspect", "tiny", "--config", config, "--cache-dir", cache_dir)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["source", str(FIXTURES / "bert-cls")] in lines
    assert ["max_tokens", "7", "configuration:", "max_tokens"] in lines


def test_what_cannot_be_served_is_told(tmp_path: Path, cache_dir: Path) -> None:
    """The exit code is 2, and one line names the file and the key."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="median")
    done = embedgrpc("inspect", folder, "--cache-dir", cache_dir)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"embedgrpc: {folder}/1_Pooling/config.json: pooling_mode must be one")


def test_onnx_runtime_is_not_loaded(cache_dir: Path) -> None:
    """Reading the properties of a model does not load ONNX Runtime."""
    program = (
        "import sys; from embedgrpc.cli.main import main\n"
        f"code = main(['inspect', {str(FIXTURES / 'bert-cls')!r}, '--cache-dir',"
        f" {str(cache_dir)!r}])\n"
        "sys.exit(code or 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0, done


def test_a_key_that_serve_would_refuse(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown key fails the command; accepted by the flag, it is listed with its file."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "1_Pooling/config.json", include_query=True)
    flags = ["inspect", str(folder), "--cache-dir", str(cache_dir)]
    assert main(flags) == 2
    assert "1_Pooling/config.json: include_query" in capsys.readouterr().err
    assert main([*flags, "--model-accept-unknown-keys", "true"]) == 0
    assert "accepted unknown include_query" in capsys.readouterr().out


def test_a_graph_that_serve_would_refuse(tmp_path: Path, cache_dir: Path) -> None:
    """An export whose results depend on the padding is tried, unless the flag forbids it."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_graph(ignore_mask)(folder)
    done = embedgrpc("inspect", folder, "--cache-dir", cache_dir)
    assert (done.code, done.out) == (2, "")
    assert "a text's result depends on the padding of its batch" in done.err.splitlines()[-1]
    quick = embedgrpc("inspect", folder, "--files-only", "--cache-dir", cache_dir)
    assert quick.code == 0
    assert "not built: the weights and their results are not checked" in quick.out


def test_weights_that_serve_would_refuse(tmp_path: Path, cache_dir: Path) -> None:
    """Weights of another shape than config.json says are found as well."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", intermediate_size=40)
    done = embedgrpc("inspect", folder, "--cache-dir", cache_dir)
    assert (done.code, done.out) == (2, "")
    assert "intermediate" in done.err.splitlines()[-1]
