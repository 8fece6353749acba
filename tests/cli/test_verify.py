import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedgrpc.cli.deviation import compare, is_finite, length_gap
from embedgrpc.cli.runners import Item, ModelOutputs
from embedgrpc.cli.sample_texts import sample_texts
from embedgrpc.cli.verification import Verification, like_lengths, unlike_lengths
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING, TOKEN_VECTORS
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from tests.cli.command import DEFAULT_MODEL, FIXTURES, embedgrpc, embedgrpc_anew
from tests.models.runner import copy_fixture, edit_json
from tests.triton.server import TritonServer

# Plays the library with what the real one answered once: `expected.json` beside the model. It
# takes one text at a time, as padding changes some answers of the real one.
LIBRARY = """
import json
from pathlib import Path
import numpy as np


class SentenceTransformer:
    def __init__(self, path, revision=None, device=None, model_kwargs=None):
        assert (revision, device) == (None, "cpu")
        self.expected = json.loads((Path(path) / "expected.json").read_text())

    def encode(self, texts, batch_size, show_progress_bar, convert_to_numpy):
        assert convert_to_numpy and not show_progress_bar and batch_size == 1
        known = dict(zip(self.expected["texts"], self.expected["outputs"]["default"]["vectors"]))
        return np.array([known[text] for text in texts], np.float32)


class CrossEncoder:
    def __init__(self, path, revision=None, device=None, model_kwargs=None):
        if (Path(path) / "refused").exists():
            raise ValueError("no such architecture\\nand more")

    def predict(self, pairs, batch_size, show_progress_bar, convert_to_numpy, activation_fn):
        assert type(activation_fn).__name__ == "Identity" and batch_size == 1
        return np.zeros(len(pairs), np.float32)
"""
TORCH = """
class nn:
    class Identity:
        pass
"""
METADATA = "Metadata-Version: 2.1\nName: sentence-transformers\nVersion: 6.0.0\n"


@pytest.fixture
def library(tmp_path: Path) -> str:
    """A folder for PYTHONPATH in which the reference is installed."""
    folder = tmp_path / "library"
    files = {
        "sentence_transformers/__init__.py": LIBRARY,
        "torch/__init__.py": TORCH,
        "sentence_transformers-6.0.0.dist-info/METADATA": METADATA,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(DEFAULT_MODEL, marks=pytest.mark.slow),
        *("xlmr-bge-m3", "splade-bert", "cross-xlmr", "qwen3-last", "classify-nli"),
    ],
)
def test_a_good_model_passes(name: str, cache_dir: Path) -> None:
    """Every check passes; the last line says that there is no reference to compare with."""
    source = name if name == DEFAULT_MODEL else FIXTURES / name
    run = embedgrpc_anew if name == "classify-nli" else embedgrpc
    done = run("verify", source, "--device", "cpu", "--cache-dir", cache_dir)
    assert done.code == 0, done
    assert all('"building graph"' in line for line in done.err.splitlines())
    states = dict.fromkeys(
        re.split(r"\s{2,}", line)[1].split()[0] for line in done.out.splitlines()
    )
    assert list(states) == ["ok", "-"]
    # A classifier reads the texts, and pairs of them.
    assert re.search(r" [36]\d, of \d+ to \d+ tokens, \d+ truncated", done.out)
    assert "truncated" in done.out
    assert "install sentence-transformers, or give --against" in done.out


def test_the_prompt_of_a_cross_encoder_counts(tmp_path: Path, cache_dir: Path) -> None:
    """Pairs are scored with its default prompt before the query."""
    folder = copy_fixture("cross-bert", tmp_path)
    extras = folder / "config_sentence_transformers.json"
    extras.write_text('{"prompts": {"web": "find: "}, "default_prompt_name": "web"}')
    against = ("--against", FIXTURES / "cross-bert", "--device", "cpu", "--cache-dir", cache_dir)
    assert "WRONG  logits against" in embedgrpc("verify", folder, *against).out
    extras.unlink()
    assert embedgrpc("verify", folder, *against).code == 0


def test_two_sources_are_compared(tmp_path: Path, cache_dir: Path) -> None:
    """The same model from its export and from its safetensors is within the tolerance."""
    plain = copy_fixture("bert-cls", tmp_path, leave_out=["onnx"])
    arguments = ("verify", FIXTURES / "bert-cls", "--against", plain, "--cache-dir", cache_dir)
    done = embedgrpc(*arguments)
    assert done.code == 0, done
    last = done.out.splitlines()[-1]
    found = re.search(
        rf"ok +sentence_embedding against {plain}: numbers max (\S+) mean (\S+),", last
    )
    assert found
    assert 0 < float(found[2]) < float(found[1]) < 1e-4
    assert re.search(rf"ok +token_vectors against {plain}: numbers max \S+ mean", done.out)
    assert re.search(r"1 - cosine max \S+ mean \S+$", last)
    strict = embedgrpc(*arguments, "--tolerance", "1e-12")
    assert strict.code == 1
    assert re.search(r"reference +WRONG .* worst at text \d+$", strict.out.splitlines()[-1])


@pytest.mark.parametrize("name", [TOKEN_VECTORS, SENTENCE_EMBEDDING])
def test_only_the_errors_of_token_vectors_may_grow_with_their_size(
    name: str, cache_dir: Path
) -> None:
    """Their length is not fixed, while that of a text's vector mostly is."""
    row = np.linspace(-1, 1, 8, dtype=np.float32) * 1000
    verification = Verification(
        settings=Settings(cache_dir=cache_dir),
        model=ModelSettings(id="a", source="a"),
        against=None,
        texts=None,
        tolerance=1e-4,
    )
    other = _Answers({name: [row * np.float32(1.00001)]})
    (check,) = verification._check_against({name: [row]}, other, ["a"])
    assert check.passed is (name == TOKEN_VECTORS)
    far = _Answers({name: [row * np.float32(1.001)]})
    (check,) = verification._check_against({name: [row]}, far, ["a"])
    assert not check.passed


class _Answers:
    """A model with given results."""

    name = "given"

    def __init__(self, outputs: ModelOutputs) -> None:
        self._outputs = outputs

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Return the results."""
        assert len(items) == 1
        return self._outputs


def test_int8_does_not_depend_on_the_batch(cache_dir: Path) -> None:
    """However much may differ from float32, a text's vector may not depend on its batch."""
    source = FIXTURES / "bert-mean"
    options = ("--model-weight-type", "int8", "--tolerance", "0.1", "--cache-dir", cache_dir)
    done = embedgrpc("verify", source, *options, "--against", source)
    assert done.code == 0, done
    found = re.findall(r"sentence_embedding against alone: numbers max (\S+)", done.out)
    assert len(found) == 2
    assert all(float(number) <= 1e-6 for number in found)


def test_another_model_is_told_apart(tmp_path: Path, cache_dir: Path) -> None:
    """Another pooling is another model; so is one of other dimensions."""
    changed = copy_fixture("bert-mean", tmp_path)
    edit_json(
        changed / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    base = ("verify", FIXTURES / "bert-mean", "--cache-dir", cache_dir, "--against")
    assert embedgrpc(*base, changed).code == 1
    shapes = embedgrpc(*base, FIXTURES / "gemma-dense")
    assert shapes.code == 1
    assert "text 1 has another shape" in shapes.out


@pytest.mark.triton
@pytest.mark.parametrize("name", ["bert-mean", "xlmr-bge-m3", "cross-bert"])
def test_a_model_on_triton_is_compared_with_its_files(
    name: str, triton_server: TritonServer, cache_dir: Path
) -> None:
    """Every kind of model gives the same results on Triton as here."""
    far = f"triton:{triton_server.address}/{name}"
    done = embedgrpc("verify", far, *_against(FIXTURES / name, cache_dir))
    assert done.code == 0, done
    assert f"on triton: {far}" in done.out
    compared = [line.split() for line in done.out.splitlines() if line.startswith("reference")]
    assert {words[1] for words in compared} == {"ok"}
    assert len(compared) == {"bert-mean": 2, "xlmr-bge-m3": 4, "cross-bert": 1}[name]


@pytest.mark.triton
def test_a_model_on_triton_that_differs_is_told(
    triton_server: TritonServer, tmp_path: Path, cache_dir: Path
) -> None:
    """The line says what differs, where and how much; a missing model is refused."""
    far = f"triton:{triton_server.address}/bert-mean"
    changed = copy_fixture("bert-mean", tmp_path)
    edit_json(
        changed / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    done = embedgrpc("verify", far, *_against(changed, cache_dir))
    assert done.code == 1, done
    *lines, last = done.out.splitlines()
    assert not [line for line in lines if "WRONG" in line]
    pattern = (
        r"reference +WRONG +sentence_embedding against .*: numbers max \S+ mean .* at text \d+"
    )
    assert re.fullmatch(pattern, last)
    absent = embedgrpc("verify", far + "-not", *_against(changed, cache_dir))
    assert (absent.code, absent.out) == (2, "")
    told = f"embedgrpc: {triton_server.address}: the model bert-mean-not is not ready\n"
    assert absent.err == told


def _against(source: Path, cache_dir: Path) -> tuple[str | Path, ...]:
    return ("--against", source, "--device", "cpu", "--cache-dir", cache_dir)


def test_the_reference_is_asked(tmp_path: Path, cache_dir: Path, library: str) -> None:
    """Where sentence-transformers is installed, its vectors are compared with."""
    reference = json.loads((FIXTURES / "bert-mean" / "expected.json").read_text())
    texts = [one for one in reference["texts"] if one.strip() and one.splitlines() == [one]]
    assert len(texts) > 10
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts), "utf-8")
    done = embedgrpc(
        "verify",
        FIXTURES / "bert-mean",
        "--texts",
        path,
        "--cache-dir",
        cache_dir,
        PYTHONPATH=library,
    )
    assert done.code == 0, done
    last = done.out.splitlines()[-1]
    assert "ok     sentence_embedding against sentence-transformers 6.0.0: numbers max" in last


def test_scores_are_compared_before_their_activation(
    tmp_path: Path, cache_dir: Path, library: str
) -> None:
    """A cross-encoder's logits are compared; a reference that cannot load is reported."""
    base = ("verify", "--cache-dir", cache_dir)
    done = embedgrpc(*base, FIXTURES / "cross-bert", PYTHONPATH=library)
    assert done.code == 1
    assert "WRONG  logits against sentence-transformers 6.0.0: numbers max" in done.out
    folder = copy_fixture("cross-bert", tmp_path)
    (folder / "refused").touch()
    refused = embedgrpc(*base, folder, PYTHONPATH=library)
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == (
        f"embedgrpc: sentence-transformers 6.0.0 cannot load {str(folder)!r}:"
        " ValueError: no such architecture"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nothing"], "model source './nothing' is not a folder here"),
        ([FIXTURES / "bert-cls", "--against", "./nothing"], "model source './nothing'"),
        ([FIXTURES / "bert-cls", "--against", FIXTURES / "cross-bert"], "cannot be compared with"),
        ([FIXTURES / "bert-cls", "--texts", FIXTURES / "nothing"], "cannot be read: No such file"),
        (
            [FIXTURES / "bert-cls", "--texts", "/dev/null"],
            "/dev/null: the file holds no text",
        ),
    ],
)
def test_what_cannot_be_used_is_told(
    arguments: list[str | Path], message: str, cache_dir: Path
) -> None:
    """The exit code is 2, and the last line says why."""
    done = embedgrpc("verify", *arguments, "--device", "cpu", "--cache-dir", cache_dir)
    assert done.code == 2
    assert message in done.err
    assert len([line for line in done.err.splitlines() if "building graph" not in line]) == 1


@pytest.mark.parametrize("lengths", [[5], [3, 9], [4, 1, 7], list(range(1, 30)), [3000, 2, 3000]])
def test_each_text_is_in_one_batch_of_each_kind(lengths: list[int]) -> None:
    """Nothing is left out or run twice, and long texts are not many in a batch."""
    for batches in (like_lengths(lengths), unlike_lengths(lengths)):
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        assert all(len(batch) <= 8 for batch in batches)
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in like_lengths(lengths)]
    assert max(padded) <= max(4096, *lengths)


def test_deviations_are_measured() -> None:
    """The largest and the mean of the numbers and of the angles, and where it is worst."""
    ours = [np.array([1, 0], np.float32), np.array([0, 2], np.float32)]
    theirs = [np.array([1, 0], np.float32), np.array([2, 0], np.float32)]
    found = compare(ours, theirs)
    assert (found.number_max, found.number_mean, found.worst) == (2, 1, 1)
    assert (found.cosine_max, found.cosine_mean) == (1, 0.5)


def test_zeros_and_single_numbers_have_no_angle() -> None:
    """Zeros are like zeros and like nothing else; logits have numbers only."""
    zeros, ones = [np.zeros(3, np.float32)], [np.ones(3, np.float32)]
    assert compare(zeros, zeros).cosine_max == 0
    assert compare(zeros, ones).cosine_max == 1
    assert compare([np.ones(1, np.float32)], [np.zeros(1, np.float32)]).cosine_max is None


def test_vectors_of_tokens_are_compared_one_by_one() -> None:
    """The worst token counts, however many others are alike; another count is another shape."""
    ours = np.tile(np.array([1, 0], np.float32), (100, 1))
    theirs = ours.copy()
    theirs[50] = [0, 1]
    assert compare([ours], [theirs]).cosine_max == 1
    assert np.isinf(compare([ours], [theirs[1:]]).number_max)


def test_what_is_no_number_is_found() -> None:
    """NaN is never within a tolerance; lengths are measured from 1."""
    bad = [np.array([1, np.nan], np.float32)]
    assert not is_finite(bad)
    assert not compare(bad, bad).number_max <= 1
    assert length_gap([np.array([3, 4], np.float32)]) == pytest.approx(4)


def test_samples_hold_what_tokenizers_differ_in() -> None:
    """Added tokens, blanks at the end, and long texts with another start than end."""
    texts = sample_texts(64, ["[Q]"])
    assert any("[Q]" in text for text in texts)
    assert any(text.endswith("\n\n") for text in texts)
    longest = max(texts, key=lambda text: len(text.split()))
    assert len(longest.split()) > 64
    assert any(len(text.split()) > 64 and text[:20] not in text[20:] for text in texts)
