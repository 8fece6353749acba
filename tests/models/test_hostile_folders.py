"""Hostile model folders are refused quickly, by name, and with little memory."""

import os
import shutil
from pathlib import Path

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.graphs import graph
from embedgrpc.models.sources.source import ModelFiles, resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.breaking import Break, both, edit, move, remove, repath_module, write
from tests.models.hostile import (
    LEAKS,
    folder_instead,
    header,
    leak,
    link_out,
    link_to,
    listening_socket,
    many_tensors,
    modules,
    move_module,
    normalizer,
    pipe,
    replace_step,
    sparse,
    table_step,
    word_length,
)
from tests.models.runner import FIXTURES, copy_fixture

_MIB = 1 << 20
_DOUBLE = replace_step("a", "aa")
_OUT = "leads out of the model folder"


def _prompts(count: int) -> dict[str, str]:
    return {f"p{number}": "x" for number in range(count)}


# The fixture, the change, and the parts of the message: the file, and the field, limit and value.
_ROWS: dict[str, tuple[str, Break, str, tuple[str, ...]]] = {
    # values in configurations
    "a billion layers": ("bert-mean", edit("config.json", num_hidden_layers=10**9),
                         "config.json", ("num_hidden_layers", "1024", str(10**9))),
    "layers of no tensor": ("bert-mean", edit("config.json", num_hidden_layers=1000),
                            "config.json", ("num_hidden_layers", "tensors", "1000")),
    "a wide model": ("bert-mean", edit("config.json", hidden_size=2**40), "config.json",
                     ("hidden_size", "262144", str(2**40))),
    "a large vocabulary": ("bert-mean", edit("config.json", vocab_size=10**12), "config.json",
                           ("vocab_size", "16777216")),
    "many heads": ("bert-mean", edit("config.json", num_attention_heads=2**30), "config.json",
                   ("num_attention_heads", "4096")),
    "many positions": ("bert-mean", edit("config.json", max_position_embeddings=2**40),
                       "config.json", ("max_position_embeddings", "16777216")),
    "a number of 4000 digits": ("bert-mean", edit("config.json", num_hidden_layers=10**4000),
                                "config.json", ("num_hidden_layers", "4001 digits")),
    "a long sequence": ("bert-mean", edit("sentence_bert_config.json", max_seq_length=2**40),
                        "sentence_bert_config.json", ("max_seq_length", "16777216")),
    "many labels": ("cross-bert", edit("config.json", num_labels=10**9), "config.json",
                    ("num_labels", "65536")),
    "many modules": ("bert-mean", modules(65), "modules.json", ("65 modules", "64")),
    "many poolings": ("bert-st54", edit("1_Pooling/config.json", pooling_mode=["cls"] * 17),
                      "1_Pooling/config.json", ("pooling_mode", "16", "17")),
    "a large Dense": ("gemma-dense", edit("2_Dense/config.json", out_features=2**40),
                      "2_Dense/config.json", ("out_features", "2097152")),
    "many prompts": ("bert-mean", edit("config_sentence_transformers.json",
                                       prompts=_prompts(1025)),
                     "config_sentence_transformers.json", ("prompts", "1024", "1025")),
    "a long prompt": ("bert-mean", edit("config_sentence_transformers.json",
                                        prompts={"p": "x" * 65_536}),
                      "config_sentence_transformers.json", ("prompts.p", "65536", "65537")),
    "a large configuration": ("bert-mean", sparse("config.json", 8 * _MIB + 1), "config.json",
                              (str(8 * _MIB), str(8 * _MIB + 1))),
    "large modules": ("bert-mean", sparse("modules.json", _MIB + 1), "modules.json", (str(_MIB),)),
    "an endless tokenizer": ("bert-mean", sparse("tokenizer.json", 2**40), "tokenizer.json",
                             (str(128 * _MIB), str(2**40))),
    # tokenizers that make texts longer
    "a tokenizer that doubles": ("bert-mean", normalizer(*[_DOUBLE] * 40), "tokenizer.json",
                                 ("normalizer", "4096")),
    "one without types": ("bert-mean", normalizer(*[
        {"pattern": {"String": "a"}, "content": "aa"}] * 40), "tokenizer.json",
        ("normalizer", "4096")),
    "one with patterns": ("bert-mean", normalizer(*[
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "bb"}] * 8), "tokenizer.json",
        ("normalizer", "4096")),
    "one between characters": ("bert-mean", normalizer(*[replace_step("", "b")] * 13),
                               "tokenizer.json", ("normalizer", "4096")),
    "one with tables": ("bert-mean", normalizer(*[table_step("x" * 100)] * 2),
                        "tokenizer.json", ("normalizer", "4096")),
    "one that prepends": ("bert-mean", normalizer({"type": "Prepend", "prepend": "x" * 4096}),
                          "tokenizer.json", ("normalizer", "4096")),
    "one in sequences": ("bert-mean", normalizer(
        {"type": "Sequence", "normalizers": [_DOUBLE] * 7},
        {"type": "Sequence", "normalizers": [_DOUBLE] * 6}), "tokenizer.json",
        ("normalizer", "4096")),
    "one of many steps": ("bert-mean", normalizer(*[{"type": "Strip", "strip_left": True,
                                                     "strip_right": True}] * 65),
                          "tokenizer.json", ("65 steps", "64")),
    "one of long words": ("bert-mean", word_length(10**9), "tokenizer.json",
                          ("max_input_chars_per_word", "10000")),
    "one of endless words": ("bert-mean", word_length(10**400), "tokenizer.json",
                             ("max_input_chars_per_word above 1e+18", "10000")),
    # things that are not regular files
    "a pipe": ("bert-mean", pipe("config.json"), "config.json", ("is a pipe",)),
    "a pipe for modules": ("bert-mean", pipe("modules.json"), "modules.json", ("is a pipe",)),
    "a pipe for a tokenizer": ("bert-mean", pipe("tokenizer.json"), "tokenizer.json",
                               ("is a pipe",)),
    "a pipe for weights": ("bert-mean", pipe("model.safetensors"), "model.safetensors",
                           ("is a pipe",)),
    "a pipe for a graph": ("bert-cls", pipe("onnx/model.onnx"), "onnx/model.onnx",
                           ("is a pipe",)),
    "a pipe beside a graph": ("gemma-dense", pipe("onnx/model.onnx_data"),
                              "onnx/model.onnx_data", ("is a pipe",)),
    "a pipe for a layer": ("gemma-dense", pipe("2_Dense/model.safetensors"),
                           "2_Dense/model.safetensors", ("is a pipe",)),
    "a pipe for a head": ("xlmr-bge-m3", both(remove("sparse_linear.safetensors"),
                                              pipe("sparse_linear.pt")),
                          "sparse_linear.pt", ("is a pipe",)),
    "a socket": ("bert-mean", listening_socket("tokenizer.json"), "tokenizer.json",
                 ("is a socket",)),
    "a folder": ("bert-mean", folder_instead("tokenizer.json"), "tokenizer.json",
                 ("is a directory",)),
    "zeros without end": ("bert-mean", link_to("model.safetensors", "/dev/zero"),
                          "model.safetensors", (_OUT,)),
    "zeros for a tokenizer": ("bert-mean", link_to("tokenizer.json", "/dev/zero"),
                              "tokenizer.json", (_OUT,)),
    # safetensors headers
    "a header of 95 MB": ("bert-mean", header(95 * 10**6), "model.safetensors",
                          ("header", "95000000", str(8 * _MIB))),
    "a header of 2^60": ("bert-mean", both(write("model.safetensors", b"\0" * 7 + b"\x10"),
                                           lambda _: None), "model.safetensors", ("header",)),
    "many tensors": ("bert-mean", many_tensors(65_537), "model.safetensors",
                     ("65537 tensors", "65536")),
    # names and links that lead out of the folder
    "configuration by a link": ("bert-mean", link_out("config.json"), "config.json", (_OUT,)),
    "modules by a link": ("bert-mean", link_out("modules.json"), "modules.json", (_OUT,)),
    "tokenizer by a link": ("bert-mean", link_out("tokenizer.json"), "tokenizer.json", (_OUT,)),
    "its settings by a link": ("bert-mean", link_out("tokenizer_config.json"),
                               "tokenizer_config.json", (_OUT,)),
    "weights by a link": ("bert-mean", link_out("model.safetensors"), "model.safetensors", (_OUT,)),
    "graph by a link": ("bert-cls", link_out("onnx/model.onnx"), "onnx/model.onnx", (_OUT,)),
    "its folder by a link": ("bert-cls", link_out("onnx"), "onnx/model.onnx", (_OUT,)),
    "head by a link": ("xlmr-bge-m3", link_out("sparse_linear.safetensors"),
                       "sparse_linear.safetensors", (_OUT,)),
    "layer by a link": ("gemma-dense", link_out("2_Dense/model.safetensors"),
                        "2_Dense/model.safetensors", (_OUT,)),
    "module by a link": ("gemma-dense", link_out("2_Dense"), "modules.json", (_OUT,)),
    "links in a circle": ("bert-mean", link_to("tokenizer.json", "tokenizer.json"),
                          "tokenizer.json", ()),
    "Transformer above": ("bert-mean", move_module(0, "../outside"), "modules.json",
                          ("[0].path '../outside'", _OUT)),
    "Pooling above": ("bert-mean", move_module(1, "../outside"), "modules.json",
                      ("[1].path '../outside'", _OUT)),
    "Pooling anywhere": ("bert-mean", move_module(1, "absolute"), "modules.json",
                         ("[1].path", _OUT)),
    "Dense above": ("gemma-dense", move_module(2, "../outside"), "modules.json",
                    ("[2].path '../outside'", _OUT)),
    "Dense anywhere": ("gemma-dense", move_module(2, "absolute"), "modules.json",
                       ("[2].path", _OUT)),
    "Dense above, by a detour": ("gemma-dense", move_module(2, "1_Pooling/../../outside"),
                                 "modules.json", ("[2].path", _OUT)),
    "Normalize above": ("gemma-dense", move_module(4, "../outside"), "modules.json",
                        ("[4].path '../outside'", _OUT)),
    "SpladePooling above": ("splade-bert", move_module(1, "../outside"), "modules.json",
                            ("[1].path '../outside'", _OUT)),
    "a long name": ("bert-mean", repath_module(1, "x" * 256, kind="Pooling"), "modules.json",
                    ("[1].path", "256", "255")),
    "a long path": ("bert-mean", repath_module(1, "x/" * 600, kind="Pooling"), "modules.json",
                    ("[1].path", "1200", "1024")),
    "a name of no file": ("bert-mean", repath_module(1, "a\0b", kind="Pooling"), "modules.json",
                          ("[1].path", _OUT)),
    "a long shard": ("bert-mean", both(remove("model.safetensors"), write(
        "model.safetensors.index.json", '{"weight_map": {"a": "' + "x" * 300 + '"}}')),
        "model.safetensors.index.json", ("weight_map", "300", "255")),
    "shards by a link": ("bert-mean", both(link_out("model.safetensors"), both(
        move("model.safetensors", "model-1.safetensors"),
        write("model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}'))),
        "model-1.safetensors", (_OUT,)),
    "many shards": ("bert-mean", both(remove("model.safetensors"), write(
        "model.safetensors.index.json",
        '{"weight_map": {' + ", ".join(f'"{n}": "m{n}"' for n in range(1025)) + "}}")),
        "model.safetensors.index.json", ("weight_map", "1024", "1025")),
    **{f"outside data of {name}": ("bert-cls", leak(change), "onnx/model.onnx",
                                   ("'../../secret'", _OUT)) for name, change in LEAKS.items()},
}  # fmt: skip


def _load(files: ModelFiles, cache_dir: Path) -> None:
    described = properties.read(files)
    Tokenizer.load(described)
    graph.prepare(files, described, cache_dir=cache_dir)


@pytest.mark.parametrize("row", _ROWS)
def test_a_hostile_folder_is_refused_by_name(tmp_path: Path, row: str) -> None:
    """The error is one line with the file, the field, the limit and the value."""
    fixture, harm, file, parts = _ROWS[row]
    folder = copy_fixture(fixture, tmp_path)
    harm(folder)
    with pytest.raises(ModelError) as caught:
        _load(resolve(str(folder)), tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert str(folder / file) in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="makes a device")
def test_a_device_is_refused(tmp_path: Path) -> None:
    """A device in the folder is not opened."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "tokenizer.json").unlink()
    os.mknod(folder / "tokenizer.json", 0o20644, os.makedev(1, 5))
    with pytest.raises(ModelError, match=r"tokenizer\.json is a device, not a regular file"):
        _load(resolve(str(folder)), tmp_path / "cache")


def test_a_kubernetes_volume_is_served(tmp_path: Path) -> None:
    """The links of a ConfigMap or a secret, which lead to `..data`, stay in the folder."""
    whole = copy_fixture("bert-mean", tmp_path)
    volume = tmp_path / "volume"
    state = volume / "..2026_11_28_00_00_00.1"
    state.parent.mkdir()
    shutil.copytree(whole, state)
    (volume / "..data").symlink_to(state.name)
    for path in state.iterdir():
        (volume / path.name).symlink_to(f"..data/{path.name}")
    _load(resolve(str(volume)), tmp_path / "cache")


def test_a_link_to_the_folder_itself_is_followed(tmp_path: Path) -> None:
    """The source itself may be a link to another folder."""
    folder = copy_fixture("bert-mean", tmp_path)
    (tmp_path / "link").symlink_to(folder)
    _load(resolve(str(tmp_path / "link")), tmp_path / "cache")


def _snapshot(tmp_path: Path) -> tuple[Path, Path]:
    """Make a model in the Hub's cache; return its snapshot and the folder of its contents."""
    repository = tmp_path / "models--org--name"
    folder, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    shutil.copytree(FIXTURES / "bert-mean", folder)
    blobs.mkdir()
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        up = "../" * (len(path.relative_to(repository).parts) - 1)
        path.symlink_to(f"{up}blobs/{number}")
    return folder, blobs


def test_the_cache_of_the_hub_is_served(tmp_path: Path) -> None:
    """Links from a snapshot to the contents of the same repository are accepted."""
    folder, _ = _snapshot(tmp_path)
    _load(ModelFiles(str(folder), folder, ""), tmp_path / "cache")


@pytest.mark.parametrize(
    "target", ["../../../models--org--other/blobs/0", "../../refs/main", "../../../outside"]
)
def test_other_links_from_a_snapshot_are_refused(tmp_path: Path, target: str) -> None:
    """Links to another repository's contents or to other files of the cache are refused."""
    folder, _ = _snapshot(tmp_path)
    path = folder / "tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    outside = folder / target
    outside.resolve().parent.mkdir(parents=True, exist_ok=True)
    outside.resolve().write_bytes(content)
    path.symlink_to(target)
    with pytest.raises(ModelError, match=_OUT):
        _load(ModelFiles(str(folder), folder, ""), tmp_path / "cache")
