"""Static models: a table of token vectors in place of an encoder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Pooling, Truncation, WeightType
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

Load = Callable[[str | Path], Runner]
_NAMES = ("static-potion", "static-st", "static-quantized")


def _embed(runner: Runner, texts: list[str]) -> np.ndarray:
    properties = runner.properties
    cut = [
        runner.tokenizer.cut_characters(text, properties.max_tokens, properties.truncation)
        for text in texts
    ]
    return runner.run(runner.tokenize(cut), "sentence_embedding")


@pytest.mark.parametrize("name", _NAMES)
def test_vectors(load: Load, name: str) -> None:
    """The vectors are those of the library that saved the model."""
    reference = expected(name)
    vectors = _embed(load(FIXTURES / name), reference["texts"])
    np.testing.assert_allclose(
        vectors, reference["outputs"]["default"]["vectors"], rtol=0, atol=reference["tolerance"]
    )


@pytest.mark.parametrize("name", _NAMES)
def test_company_changes_nothing(load: Load, name: str) -> None:
    """A text has the same vector alone, among others and padded."""
    runner = load(FIXTURES / name)
    texts = expected(name)["texts"]
    together = _embed(runner, texts)
    alone = np.concatenate([_embed(runner, [text]) for text in texts])
    padded = runner.run(runner.tokenize(texts[:1]), "sentence_embedding", tokens=500)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(padded, alone[:1], rtol=0, atol=1e-6)


def test_both_layouts_of_model2vec(load: Load, tmp_path: Path) -> None:
    """A folder of model2vec is the same model with and without modules.json."""
    plain = load(copy_fixture("static-potion", tmp_path, leave_out=["modules.json"]))
    texts = expected("static-potion")["texts"]
    assert plain.properties.normalize
    assert np.array_equal(_embed(plain, texts), _embed(load(FIXTURES / "static-potion"), texts))


def test_only_model2vec_drops_unknown_tokens(load: Load, tmp_path: Path) -> None:
    """The same table averages unknown tokens too where sentence-transformers reads it."""
    folder = copy_fixture("static-potion", tmp_path, leave_out=["config.json"])
    table = load_file(folder / "model.safetensors")["embeddings"]
    unknown, a = table[1], table[41]
    for source, mean in ((FIXTURES / "static-potion", a), (folder, (unknown + a) / 2)):
        vector = _embed(load(source), ["\u0e01 a"])[0]
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)


def test_model2vec_cuts_characters(load: Load) -> None:
    """Of a long text, so many characters are read as the limit's tokens have in the median."""
    runner = load(FIXTURES / "static-potion")
    kept = 3 * 512
    assert runner.tokenizer.characters_per_token == 3
    long = "internationalization " * 100
    assert runner.tokenizer.cut_characters(long, 512, Truncation.END) == long[:kept]
    assert runner.tokenizer.cut_characters(long, 512, Truncation.START) == long[-kept:]
    assert runner.tokenizer.cut_characters(long, 512, Truncation.NONE) == long
    assert load(FIXTURES / "static-st").tokenizer.cut_characters(long, 24, Truncation.END) == long


def test_a_truncated_text_leaves_nothing_in_memory(load: Load) -> None:
    """The tokens that were cut off do not stay behind those that are kept."""
    tokenizer = load(FIXTURES / "static-st").tokenizer
    [ids] = tokenizer.encode(["the river " * 100])
    sequence = tokenizer.build_sequence(ids, max_tokens=24, truncation=Truncation.END)
    assert sequence.input_ids.tolist() == ids[:24].tolist()
    assert sequence.input_ids.base is None
    whole = tokenizer.build_sequence(ids, max_tokens=1000, truncation=Truncation.END)
    assert whole.input_ids is ids


def test_limits(tmp_path: Path) -> None:
    """The limit is that of the library; without one, longer texts are refused."""
    potion = copy_fixture("static-potion", tmp_path)
    found = read(resolve(str(potion)))
    assert (found.max_tokens, found.truncation) == (512, Truncation.END)
    config = json.loads((potion / "config.json").read_text())
    (potion / "config.json").write_text(json.dumps(config | {"max_length": None}))
    unlimited = read(resolve(str(potion)))
    assert (unlimited.max_tokens, unlimited.truncation) == (131_072, Truncation.NONE)
    set_by_user = read(resolve(str(potion)), ModelOverrides(max_tokens=100))
    assert (set_by_user.max_tokens, set_by_user.truncation) == (100, Truncation.END)
    static = copy_fixture("static-st", tmp_path)
    assert read(resolve(str(static))).max_tokens == 24
    edit_json(static / "tokenizer.json", truncation=None)
    assert read(resolve(str(static))).truncation is Truncation.NONE


def test_number_types(load: Load, tmp_path: Path) -> None:
    """A table keeps its type; int8 has a scale for each row."""
    assert load(FIXTURES / "static-quantized").graph.weight_type == "float16"
    files = resolve(str(FIXTURES / "static-potion"))
    properties = read(files, ModelOverrides(weight_type=WeightType.INT8))
    graph = prepare(files, properties, cache_dir=tmp_path)
    exact = load(FIXTURES / "static-potion")
    assert graph.weight_type == "int8"
    assert graph.weight_bytes < 0.35 * exact.graph.weight_bytes
    assert graph.content_hash != exact.graph.content_hash
    folder = copy_fixture("static-potion", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    scaled = np.rint(tensors["embeddings"] * 40).clip(-127, 127)
    save_file({"embeddings": scaled.astype(np.int8)}, folder / "model.safetensors")
    whole = load(folder)
    assert whole.graph.weight_type == "int8"
    mean = scaled[[495, 41]].mean(axis=0)
    np.testing.assert_allclose(
        _embed(whole, ["the a"])[0], mean / np.linalg.norm(mean), rtol=0, atol=1e-6
    )


def _save(folder: Path, **tensors: np.ndarray) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


def _edit_potion(change: Callable[[Path], None], tmp_path: Path, name: str) -> Path:
    folder = copy_fixture(name, tmp_path)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("static-potion", lambda f: edit_json(f / "config.json", normalize=False), "agree"),
        ("static-potion", lambda f: edit_json(f / "config.json", norm="l2"), "norm"),
        ("static-potion", lambda f: edit_json(f / "config.json", max_length="x"), "max_length"),
        ("static-potion", lambda f: (f / "model.safetensors").unlink(), "must hold the table"),
        ("static-potion", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        ("static-potion", lambda f: save_file({"x": np.ones((2, 2))}, f / "model.safetensors"),
         "embedding.weight or embeddings"),
        ("static-potion", lambda f: _save(f, embeddings=np.ones(1200, np.float32)), "[1200]"),
        ("static-potion", lambda f: _save(f, embeddings=np.ones((9, 4), np.float32)), "9 tokens"),
        ("static-potion", lambda f: _save(f, embeddings=np.full((1200, 4), np.nan, np.float32)),
         "not finite"),
        ("static-st", lambda f: _save(f, **{"embedding.weight": np.ones((1200, 16), np.int8)}),
         "I8"),
        ("static-quantized", lambda f: _save(f, mapping=np.full(1200, 200)), "leads out"),
        ("static-quantized", lambda f: _save(f, mapping=np.ones(1200, np.float32)), "mapping"),
        ("static-quantized", lambda f: _save(f, weights=np.ones(7)), "7 numbers for 1200"),
    ],
)  # fmt: skip
def test_broken_folders(
    load: Load, tmp_path: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    """A broken table or a contradiction is refused with one line that says what is wrong."""
    folder = _edit_potion(change, tmp_path, name)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ModelOverrides(pooling=(Pooling.MAX,), normalize=True),
        ModelOverrides(file="onnx/model.onnx"),
        ModelOverrides(task_id=0),
        ModelOverrides(max_tokens=0),
    ],
)
def test_settings_that_do_not_fit(overrides: ModelOverrides) -> None:
    """A setting for encoders is refused."""
    with pytest.raises(ModelError, match=r"is set|must be at least 1"):
        read(resolve(str(FIXTURES / "static-potion")), overrides)
