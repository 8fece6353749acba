"""Inference-free SPLADE: a table of token weights in place of an encoder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.engine.results.sparse import SparseVector, from_looked_up_weights
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.graphs.outputs import TOKEN_WEIGHTS
from embedgrpc.models.kinds import Pooling, Representation, Similarity, WeightType
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from tests.cli.command import embedgrpc
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

Load = Callable[[str | Path], Runner]
NAME = "splade-look-up"
LISTED = "splade-idf"
MODULE = "0_SparseStaticEmbedding"
ENTRIES = 1250


@pytest.fixture(scope="module")
def look_up(load: Load) -> Runner:
    """A model that looks up weights."""
    return load(FIXTURES / NAME)


def test_properties(look_up: Runner) -> None:
    """Such a model has sparse vectors only, compared by their dot product."""
    properties = look_up.properties
    assert properties.representations == (Representation.SPARSE,)
    assert properties.dimensions == properties.multi_vector_dimensions == 0
    assert properties.sparse_dimensions == ENTRIES
    assert properties.max_tokens == expected(NAME)["settings"]["max_seq_length"]
    assert properties.similarity is Similarity.DOT
    assert properties.origins["sparse_dimensions"] == "model.safetensors: weight"
    assert look_up.graph.outputs == (TOKEN_WEIGHTS,)


def test_tokens(look_up: Runner) -> None:
    """The tokens are those of the reference, without special ones at the ends."""
    reference = expected(NAME)
    sequences = look_up.tokenize(reference["texts"])
    assert [one.input_ids.tolist() for one in sequences] == reference["token_ids"]


def test_weights(look_up: Runner) -> None:
    """Every token has its weight, in a batch with padding too."""
    table = load_file(FIXTURES / NAME / "model.safetensors")["weight"]
    sequences = look_up.tokenize(expected(NAME)["texts"])
    rows = look_up.run(sequences, TOKEN_WEIGHTS)
    for row, one in zip(rows, sequences, strict=True):
        assert np.array_equal(row[: len(one.input_ids)], table[one.input_ids])


def test_a_token_counts_once() -> None:
    """A token that occurs twice keeps its weight; zeros are left out and negative weights kept."""
    ids = np.array([7, 3, 7, 5], np.int64)
    vector = from_looked_up_weights(np.array([1.5, -2.0, 1.5, 0.0], np.float32), ids)
    assert vector.indices.tolist() == [3, 7]
    assert vector.values.tolist() == [-2.0, 1.5]


def test_the_heaviest_weights_are_the_farthest_from_zero() -> None:
    """The reference keeps the largest absolute weights."""
    vector = SparseVector(np.array([1, 4, 9], np.uint32), np.array([0.5, -2, 1], np.float32))
    assert vector.heaviest(2).indices.tolist() == [4, 9]


def test_torch_weights(load: Load, tmp_path: Path, look_up: Runner) -> None:
    """Half-precision weights are used as float32, and make another fingerprint."""
    folder = copy_fixture(NAME, tmp_path)
    weights = load_file(folder / "model.safetensors")["weight"].astype(np.float16)
    save_file({"weight": weights}, folder / "model.safetensors")
    half = load(folder)
    sequences = half.tokenize(["the cat"])
    found = half.run(sequences, TOKEN_WEIGHTS)[0]
    assert np.array_equal(found, weights[sequences[0].input_ids].astype(np.float32))
    assert half.graph.content_hash != look_up.graph.content_hash


def test_the_fingerprint_contains_the_limit(tmp_path: Path) -> None:
    """Another limit of tokens is another model."""
    files = resolve(str(FIXTURES / NAME))
    hashes = {
        identify(
            files, read(files, ModelOverrides(max_tokens=limit)), cache_dir=tmp_path
        ).content_hash
        for limit in (None, 24, 12)
    }
    assert len(hashes) == 2


def _set_path(config: Path, path: str) -> None:
    config.write_text(json.dumps({"frozen": True, "path": path}))


def _save(folder: Path, **tensors: np.ndarray) -> None:
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit_json(f / "config.json", scale=2), "config.json: scale"),
        (lambda f: (f / "model.safetensors").unlink(), "must hold the weights of tokens"),
        (lambda f: (f / "tokenizer.json").unlink(), "pad_token_id must be the id"),
        (lambda f: _save(f, other=np.ones(ENTRIES, np.float32)), "a table named weight"),
        (lambda f: _save(f, weight=np.ones((ENTRIES, 2), np.float32)), "[1250, 2]"),
        (lambda f: _save(f, weight=np.ones(ENTRIES, np.int64)), "I64"),
        (lambda f: _save(f, weight=np.ones(9, np.float32)), "has 9 weights"),
        (lambda f: _save(f, weight=np.full(ENTRIES, np.nan, np.float32)), "not finite"),
        (lambda f: edit_json(f / "tokenizer_config.json", model_max_length=None),
         "model_max_length"),
        (lambda f: edit_json(f / "config_sentence_transformers.json", model_type="CrossEncoder"),
         "contradicts the SparseStaticEmbedding module"),
        (lambda f: (f / "modules.json").write_text(
            '[{"type": "SparseStaticEmbedding"}, {"type": "Dropout"}]'),
         "must be the only module"),
        (lambda f: (f / "modules.json").write_text(
            '[{"type": "sentence_transformers.models.IDF", "path": ""}]'),
         "write that name"),
    ],
)  # fmt: skip
def test_broken_folders(
    load: Load, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    """A broken folder is refused with one line that says what is wrong."""
    folder = copy_fixture(NAME, tmp_path)
    change(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listed_weights(load: Load, tmp_path: Path) -> None:
    """A JSON file lists weights by token; the others weigh nothing.

    Names that are no token set the weight of the unknown token, as in the reference.
    """
    listed = load(FIXTURES / LISTED)
    weights = json.loads((FIXTURES / LISTED / "idf.json").read_text())
    (sequence,) = listed.tokenize(["the cat sat on the mat"])
    found = listed.run([sequence], TOKEN_WEIGHTS)[0]
    assert listed.tokenizer.locator is not None
    names = listed.tokenizer.locator.entries(sequence.input_ids)
    assert {name for name in names if name not in weights}
    assert found.tolist() == pytest.approx([weights.get(name, 0) for name in names])
    (unknown,) = listed.tokenize(["\u6771"])
    assert listed.run([unknown], TOKEN_WEIGHTS)[0].tolist() == [1.25]
    assert listed.properties.sparse_dimensions == ENTRIES
    origins = listed.properties.origins
    assert origins["sparse_dimensions"] == "0_SparseStaticEmbedding/tokenizer.json"
    # In the folder of the module, and beside weights that the reference does not read.
    folder = copy_fixture(LISTED, tmp_path)
    (folder / "idf.json").rename(folder / MODULE / "idf.json")
    save_file({"weight": np.ones(ENTRIES, np.float32)}, folder / MODULE / "model.safetensors")
    moved = load(folder)
    assert np.array_equal(moved.run([sequence], TOKEN_WEIGHTS)[0], found)
    assert moved.graph.content_hash == listed.graph.content_hash


def test_another_path_is_ignored(load: Load, tmp_path: Path, look_up: Runner) -> None:
    """The reference reads the tensor where path does not name a JSON file."""
    folder = copy_fixture(NAME, tmp_path)
    _set_path(folder / "config.json", "someone/a-model")
    sequences = look_up.tokenize(["the cat"])
    found = load(folder).run(sequences, TOKEN_WEIGHTS)
    assert np.array_equal(found, look_up.run(sequences, TOKEN_WEIGHTS))


def test_listed_weights_belong_to_a_tokenizer(load: Load, tmp_path: Path) -> None:
    """The same list with another vocabulary is another graph, also from the same cache."""
    before = load(FIXTURES / LISTED)
    folder = copy_fixture(LISTED, tmp_path)
    path = folder / MODULE / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = vocabulary["the"], vocabulary["and"]
    vocabulary["the"], vocabulary["and"] = other, one
    path.write_text(json.dumps(tokenizer))
    after = load(folder)
    ids = np.array([one, other], np.int64)
    sequence = TokenSequence(ids, None, token_count_before=2)
    swapped = after.run([sequence], TOKEN_WEIGHTS)[0]
    assert swapped.tolist() == before.run([sequence], TOKEN_WEIGHTS)[0].tolist()[::-1]
    assert swapped[0] != swapped[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "path names 'idf.json', which is missing"),
        ("{}", "must hold the weight of each token"),
        ("[1]", "must contain a JSON object"),
        ('{"the": 1, "cat": "2"}', "entry 1 must be a number"),
        ('{"the": true}', "entry 0 must be a number"),
        ('{"the": NaN}', "not finite"),
        ('{"the": 1' + "0" * 400 + "}", "not finite"),
    ],
)
def test_broken_lists(load: Load, tmp_path: Path, content: str | None, message: str) -> None:
    """A broken list of weights is refused with what is wrong."""
    folder = copy_fixture(LISTED, tmp_path)
    (folder / "idf.json").unlink()
    if content is not None:
        (folder / "idf.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_list_outside_of_the_model_is_refused(load: Load, tmp_path: Path) -> None:
    """No other file is read, named by a path or reached by a link."""
    folder = copy_fixture(LISTED, tmp_path)
    for path in ("../idf.json", str(folder / "idf.json")):
        _set_path(folder / MODULE / "config.json", path)
        with pytest.raises(ModelError, match="leads out of the model folder"):
            load(folder)
    _set_path(folder / MODULE / "config.json", "linked.json")
    (folder / "linked.json").symlink_to(FIXTURES / LISTED / "idf.json")
    with pytest.raises(ModelError, match="leads out of the model folder"):
        load(folder)


@pytest.mark.parametrize(
    "overrides",
    [
        ModelOverrides(pooling=(Pooling.MAX,), normalize=True),
        ModelOverrides(file="onnx/model.onnx"),
        ModelOverrides(task_id=0),
        ModelOverrides(weight_type=WeightType.INT8),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, overrides: ModelOverrides) -> None:
    """A setting for encoders is refused."""
    files = resolve(str(FIXTURES / NAME))
    with pytest.raises(ModelError, match="is set"):
        prepare(files, read(files, overrides), cache_dir=tmp_path)


def test_triton_does_not_run_it(tmp_path: Path) -> None:
    """A model that Triton runs must have an encoder, and no repository is written without one."""
    served = ServedTokenOutputs(token_weights=True, token_vectors=False, vector_dimensions=0)
    with pytest.raises(ModelError, match="not run on Triton"):
        read(resolve(str(FIXTURES / NAME)), served=served)
    done = embedgrpc(
        *("triton-repo", FIXTURES / NAME, tmp_path / "repository"),
        *("--cache-dir", tmp_path / "graphs"),
    )
    assert done.code == 1
    assert "not run on Triton: serve this model with embedgrpc alone" in done.err
    assert not (tmp_path / "repository" / NAME).exists()
