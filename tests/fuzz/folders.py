"""Mutated JSON files of model folders, for the readers of properties and tokenizers.

An input has the name of a fixture, the name of a file in it, and the file's new content, in lines.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

from safetensors import safe_open

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources.source import ModelFiles, resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.fuzz.mutation import mutate_bytes, mutate_json
from tests.fuzz.target import MIB, Execute, Target, check_refusal
from tests.models.runner import FIXTURES

# One fixture for each way to read a folder.
_FOLDERS = ("bert-mean", "cross-bert", "gemma-dense", "albert-dense", "splade-bert", "xlmr-bge-m3")
_TOKENIZERS = (
    "bert-mean",
    "roberta-mean",
    "cross-xlmr",
    "gemma-dense",
    "qwen3-last",
    "cross-mpnet",
)
_TOKENIZER_NAME = "tokenizer.json"
# A copy of bert-mean with an index of its weights.
_SHARDED = "sharded"
_WEIGHTS_NAME = "model.safetensors"
_SHARD_NAME = "model-00001-of-00001.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
_NOT_CONFIGS = frozenset({_TOKENIZER_NAME, "expected.json"})
# A graph is built for one in this many readable configurations, because building takes a hundred
# times longer than reading.
_GRAPH_EVERY = 16
_TEXTS = ("a", "", "The tower is 330 metres tall. \u4e00\u4e8c [SEP] </s> \U0001f600\u0301")


@cache
def _configs() -> Mapping[tuple[str, str], str]:
    """Return the content of each file to mutate."""
    found = {}
    for folder in _FOLDERS:
        for path in sorted((FIXTURES / folder).rglob("*.json")):
            if path.name not in _NOT_CONFIGS:
                found[folder, str(path.relative_to(FIXTURES / folder))] = path.read_text()
    with safe_open(FIXTURES / "bert-mean" / _WEIGHTS_NAME, "numpy") as tensors:
        homes = dict.fromkeys(tensors.keys(), _SHARD_NAME)
    found[_SHARDED, _INDEX_NAME] = json.dumps({"metadata": {}, "weight_map": homes})
    return found


@cache
def _tokenizers() -> Mapping[tuple[str, str], str]:
    return {
        (folder, _TOKENIZER_NAME): _shorten((FIXTURES / folder / _TOKENIZER_NAME).read_text())
        for folder in _TOKENIZERS
    }


def _shorten(content: str) -> str:
    """Remove most words, so that more inputs run per second."""
    document = json.loads(content)
    model = document["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = vocabulary[:400]
    elif not model.get("merges"):
        special = {token["content"] for token in document["added_tokens"]}
        model["vocab"] = {
            word: number
            for word, number in vocabulary.items()
            if number < 300 or word in special or len(word) < 2
        }
    return json.dumps(document)


@cache
def _documents(content: Mapping[tuple[str, str], str] | None = None) -> tuple[object, ...]:
    del content
    return tuple(json.loads(content) for content in (*_configs().values(), *_tokenizers().values()))


def _mutate(random: Random, files: Mapping[tuple[str, str], str]) -> bytes:
    (folder, name), content = random.choice(list(files.items()))
    if random.random() < 0.85:
        changed = mutate_json(random, json.loads(content), _documents())
    else:
        changed = mutate_bytes(random, content.encode(), _JSON_WORDS)
    return b"\n".join((folder.encode(), name.encode(), changed))


_JSON_WORDS = (b"{", b"}", b"[", b"]", b",", b'"', b"null", b"true", b"1e999", b"\\ud800", b"\xff")


def mutate_config(random: Random) -> bytes:
    """Mutate one JSON file of a model."""
    return _mutate(random, _configs())


def mutate_tokenizer(random: Random) -> bytes:
    """Mutate the tokenizer.json of a model."""
    return _mutate(random, _tokenizers())


class _Folders:
    """Copies of fixtures in which one file at a time is changed."""

    def __init__(self, scratch: Path, names: tuple[str, ...]) -> None:
        self._scratch = scratch
        for name in names:
            source = "bert-mean" if name == _SHARDED else name
            shutil.copytree(FIXTURES / source, scratch / name)
            if name == _SHARDED:
                (scratch / name / _WEIGHTS_NAME).rename(scratch / name / _SHARD_NAME)
                (scratch / name / _INDEX_NAME).write_text(_configs()[name, _INDEX_NAME])

    @contextmanager
    def changed(self, content: bytes) -> Iterator[ModelFiles]:
        """Change one file until the block ends."""
        folder, name, changed = content.split(b"\n", 2)
        path = self._scratch / folder.decode() / name.decode()
        before = path.read_bytes()
        path.write_bytes(changed)
        try:
            yield resolve(str(self._scratch / folder.decode()))
        finally:
            path.write_bytes(before)


@contextmanager
def _open_configs(scratch: Path) -> Iterator[Execute]:
    folders = _Folders(scratch, (*_FOLDERS, _SHARDED))

    def execute(content: bytes) -> None:
        try:
            with folders.changed(content) as files:
                properties = read(files)
                for text in (
                    *properties.prompts,
                    *properties.prompts.values(),
                    properties.model_type,
                ):
                    text.encode()
                if files.folder.name == _SHARDED or zlib.crc32(content) % _GRAPH_EVERY == 0:
                    Tokenizer.load(properties)
                    _prepare(files, properties, scratch)
        except ModelError as error:
            check_refusal(error, names=str(scratch))

    for name in (*_FOLDERS, _SHARDED):
        files = resolve(str(scratch / name))
        properties = read(files)
        Tokenizer.load(properties)
        _prepare(files, properties, scratch)
    yield execute


def _prepare(files: ModelFiles, properties: ModelProperties, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as cache_dir:
        assert prepare(files, properties, cache_dir=Path(cache_dir)).outputs


@contextmanager
def _open_tokenizers(scratch: Path) -> Iterator[Execute]:
    folders = _Folders(scratch, _TOKENIZERS)
    properties = {name: read(resolve(str(scratch / name))) for name in _TOKENIZERS}

    def execute(content: bytes) -> None:
        try:
            with folders.changed(content) as files:
                model = properties[files.folder.name]
                tokenizer = Tokenizer.load(model)
        except ModelError as error:
            check_refusal(error, names=str(scratch))
            return
        for ids in tokenizer.encode(_TEXTS):
            tokenizer.build_sequence(ids, max_tokens=model.max_tokens, truncation=Truncation.END)

    for (folder, name), content in _tokenizers().items():
        execute(f"{folder}\n{name}\n{content}".encode())
    yield execute


CONFIGS = Target(
    name="configs",
    what="JSON files of model folders, read as properties; for one in 16 the graph is built",
    mutate=mutate_config,
    open=_open_configs,
    test_runs=1500,
    memory_bytes=256 * MIB,
)
TOKENIZERS = Target(
    name="tokenizer-files",
    what="tokenizer.json of model folders, loaded and used",
    mutate=mutate_tokenizer,
    open=_open_tokenizers,
    test_runs=1500,
    validated=True,
)
