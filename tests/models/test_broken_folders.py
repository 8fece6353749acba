"""A broken model folder is refused with one line that names the file and the key."""

from pathlib import Path

import onnx
import pytest

from embedgrpc.models.errors import ModelError
from tests.models.breaking import (
    Break,
    add_input,
    both,
    drop_tensor,
    edit,
    edit_graph,
    link_external_outside,
    malicious_pickle,
    move,
    move_external,
    quantize,
    remove,
    rename_output,
    repath_module,
    replace_bytes,
    reshape_tensor,
    retype_module,
    truncate,
    write,
)
from tests.models.runner import Runner, copy_fixture


def _retype(model: onnx.ModelProto, kind: int) -> None:
    model.graph.initializer[0].data_type = kind


_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
_WORDS = "embeddings.word_embeddings.weight"
_TRANSFORM = "cls.predictions.transform.dense.weight"

# The fixture, the damage to its copy, the file in the message, and other parts of the message.
_ROWS: dict[str, tuple[str, Break, str, tuple[str, ...]]] = {
    # config.json and what it says about the architecture
    "no config": ("bert-mean", remove("config.json"), "config.json", ("is missing",)),
    "config no JSON": ("bert-mean", write("config.json", "{'a': 1}"), "config.json", ("not JSON",)),
    "config not text": ("bert-mean", write("config.json", b"\xff\xfe\x00"), "config.json", ()),
    "config too deep": ("bert-mean", write("config.json", "[" * 100_000), "config.json",
                        ("is nested too deeply",)),
    "padding outside": ("bert-mean", edit("config.json", pad_token_id=99_999), "config.json",
                        ("pad_token_id", "vocab_size")),
    "config a list": ("bert-mean", write("config.json", "[]"), "config.json", ("a JSON object",)),
    "no model_type": ("bert-mean", edit("config.json", model_type=None), "config.json",
                      ("model_type",)),
    "unknown architecture": ("bert-mean", edit("config.json", model_type="mamba"), "config.json",
                             ("model_type", "bert", "onnx/model.onnx")),
    "unknown activation": ("bert-mean", edit("config.json", hidden_act="snake"), "config.json",
                           ("hidden_act", "gelu")),
    "two labels": ("cross-bert", edit("config.json", id2label={"0": "no", "1": "yes"}),
                   "onnx/model.onnx", ("[batch, 2]", "a logit for each label")),
    "labels with a gap": ("classify-nli", edit("config.json", id2label={"0": "no", "2": "yes"}),
                          "config.json", ("id2label", "from 0")),
    "label no text": ("classify-nli", edit("config.json", id2label={"0": "no", "1": None}),
                      "config.json", ("id2label", "from 0")),
    "labels no object": ("classify-nli", edit("config.json", id2label=["no", "yes"]),
                         "config.json", ("id2label", "an object")),
    "unknown problem": ("classify-toxicity", edit("config.json", problem_type="ranking"),
                        "config.json", ("problem_type", "multi_label_classification")),
    "more labels than weights": ("classify-toxicity", edit("config.json", id2label={
        str(index): "x" for index in range(9)}), "model.safetensors",
        ("classifier.weight", "[6, 32]")),
    "unknown score": ("cross-bert", edit("config.json", sentence_transformers={
        "activation_fn": "torch.nn.modules.activation.Tanh"}), "config.json", ("activation_fn",)),
    "no padding token": ("bert-mean", both(edit("config.json", pad_token_id=None),
                                           edit("tokenizer_config.json", pad_token=None)),
                         "config.json", ("pad_token_id",)),
    # modules.json and the modules
    "modules no list": ("bert-mean", write("modules.json", "{}"), "modules.json", ("a list",)),
    "unknown module": ("bert-mean", retype_module(2, "Whitening"), "modules.json",
                       ("[2].type", "'Whitening'")),
    "module outside": ("bert-mean", repath_module(0, "../.."), "modules.json", ("[0].path",)),
    "module of a long name": ("bert-mean", repath_module(1, "x" * 256, kind="Pooling"),
                              "modules.json", ("[1].path", "255")),
    "module of many names": ("bert-mean", repath_module(1, "x/" * 2048, kind="Pooling"),
                             "modules.json", ("[1].path", "255")),
    "no modules": ("bert-mean", remove("modules.json"), "modules.json", ("is missing",)),
    "no pooling": ("bert-mean", remove("1_Pooling/config.json"), "1_Pooling/config.json",
                   ("is missing",)),
    "bad pooling": ("bert-st54", edit("1_Pooling/config.json", pooling_mode="median"),
                    "1_Pooling/config.json", ("pooling_mode", "cls")),
    "pooling of another size": ("bert-mean", edit("1_Pooling/config.json",
                                                  word_embedding_dimension=48), "config.json",
                                ("hidden_size is 32", "48", "Pooling")),
    "Dense of another size": ("gemma-dense", edit("2_Dense/config.json", in_features=35),
                              "2_Dense/config.json", ("35", "36")),
    "Dense after Dense": ("gemma-dense", edit("3_Dense/config.json", in_features=71),
                          "3_Dense/config.json", ("71", "72")),
    "Dense without weights": ("gemma-dense", remove("2_Dense/model.safetensors"),
                              "2_Dense/model.safetensors", ("is missing",)),
    "Dense of other weights": ("gemma-dense", reshape_tensor("3_Dense/model.safetensors",
                                                             "linear.weight", (36, 70)),
                               "3_Dense/model.safetensors", ("linear.weight", "[36, 70]")),
    "Dense activation": ("gemma-dense", edit("2_Dense/config.json",
                                             activation_function="torch.nn.Softmax"),
                         "2_Dense/config.json", ("activation_function", "torch.nn.Softmax")),
    # config_sentence_transformers.json, limits, tokenizer
    "half a character": ("bert-mean", edit("config_sentence_transformers.json",
                                           prompts={"query": "a \ud800"}),
                         "config_sentence_transformers.json", ("half a surrogate pair",)),
    "half a character in bytes": ("bert-mean", write("config.json", b'{"a": "\xed\xa0\x80"}'),
                                  "config.json", ("half a surrogate pair",)),
    "unknown prompt": ("bert-mean", edit("config_sentence_transformers.json",
                                         default_prompt_name="query"),
                       "config_sentence_transformers.json", ("default_prompt_name",)),
    "unknown similarity": ("bert-mean", edit("config_sentence_transformers.json",
                                             similarity_fn_name="jaccard"),
                           "config_sentence_transformers.json", ("similarity_fn_name", "cosine")),
    "no values kept": ("bert-mean", edit("config_sentence_transformers.json", truncate_dim=0),
                       "config_sentence_transformers.json", ("truncate_dim", "at least 1")),
    "limit no number": ("bert-mean", edit("sentence_bert_config.json", max_seq_length="long"),
                        "sentence_bert_config.json", ("max_seq_length",)),
    "no tokenizer": ("roberta-mean", remove("tokenizer.json"), "tokenizer.json", ("is missing",)),
    "broken tokenizer": ("bert-mean", truncate("tokenizer.json"), "tokenizer.json",
                         ("is not JSON",)),
    "tokenizer of no library": ("bert-mean", edit("tokenizer.json", normalizer={
        "type": "Precompiled", "precompiled_charsmap": "AAAA"}), "tokenizer.json",
        ("cannot be read",)),
    "tokenizer without a word": ("bert-mean", edit("tokenizer.json", model={
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"b": 0}}), "tokenizer.json",
        ("cannot be read", "Missing [UNK] token")),
    "tokenizer not fetched": ("bert-mean", write("tokenizer.json", _POINTER), "tokenizer.json",
                              ("Git LFS pointer",)),
    "no room for a text": ("bert-mean", edit("sentence_bert_config.json", max_seq_length=2),
                           "tokenizer.json", ("2 special tokens", "max_seq_length")),
    "case no boolean": ("bert-mean", edit("tokenizer_config.json", do_lower_case="yes"),
                        "tokenizer_config.json", ("do_lower_case", "true or false")),
    "bad padding side": ("bert-mean", edit("tokenizer_config.json", padding_side="top"),
                         "tokenizer_config.json", ("padding_side", "left or right")),
    # weights
    "no weights": ("bert-mean", remove("model.safetensors"), "model.safetensors",
                   ("is missing", "onnx/model.onnx")),
    "weights not fetched": ("bert-mean", write("model.safetensors", _POINTER),
                            "model.safetensors", ("Git LFS pointer",)),
    "corrupt header": ("bert-mean", write("model.safetensors", b"\x10" + b"\0" * 7 + b"{" * 16),
                       "model.safetensors", ("is not a safetensors file",)),
    "truncated weights": ("bert-mean", truncate("model.safetensors"), "model.safetensors",
                          ("is not a safetensors file",)),
    "missing tensor": ("bert-mean", drop_tensor("model.safetensors", _WORDS),
                       "model.safetensors", (_WORDS, "is missing")),
    "mis-shaped tensor": ("bert-mean", reshape_tensor("model.safetensors", _WORDS, (7, 32)),
                          "model.safetensors", (_WORDS, "[7, 32]")),
    "missing shard": ("bert-mean", both(
        remove("model.safetensors"),
        write("model.safetensors.index.json",
              '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')),
        "model.safetensors.index.json", ("model-00001-of-00002.safetensors",)),
    "shard of a long name": ("bert-mean", both(
        remove("model.safetensors"),
        write("model.safetensors.index.json", f'{{"weight_map": {{"a": "{"x" * 256}"}}}}')),
        "model.safetensors.index.json", ("weight_map", "255")),
    # ONNX graphs
    "two graphs and no choice": ("bert-cls", both(remove("model.safetensors"), both(
        move("onnx/model.onnx", "onnx/model_O2.onnx"), write("onnx/model_int8.onnx", b"x"))),
        "model.safetensors", ("set file", "onnx/model_O2.onnx, onnx/model_int8.onnx")),
    "truncated graph": ("bert-cls", truncate("onnx/model.onnx"), "onnx/model.onnx",
                        ("is not an ONNX file",)),
    "empty graph": ("bert-cls", write("onnx/model.onnx", b""), "onnx/model.onnx",
                    ("is not an ONNX file",)),
    "graph not fetched": ("bert-cls", write("onnx/model.onnx", _POINTER), "onnx/model.onnx",
                          ("Git LFS pointer",)),
    "quantised graph": ("bert-cls", edit_graph(quantize), "onnx/model.onnx",
                        ("quantised", "DynamicQuantizeLinear")),
    "unknown input": ("bert-cls", edit_graph(add_input), "onnx/model.onnx", ("'pixel_values'",)),
    "no output of use": ("bert-cls", edit_graph(rename_output), "onnx/model.onnx",
                         ("result", "last_hidden_state")),
    "weights above": ("gemma-dense", move_external("../../../etc/passwd"), "onnx/model.onnx",
                      ("'../../../etc/passwd'", "leads out of the model folder")),
    "weights anywhere": ("gemma-dense", move_external("/etc/passwd"), "onnx/model.onnx",
                         ("'/etc/passwd'", "leads out of the model folder")),
    "weights by a link": ("gemma-dense", link_external_outside, "onnx/model.onnx",
                          ("'model.onnx_data'", "leads out of the model folder")),
    "no external weights": ("gemma-dense", remove("onnx/model.onnx_data"), "onnx/model.onnx",
                            ("'model.onnx_data'", "is missing")),
    "external weights cut": ("gemma-dense", truncate("onnx/model.onnx_data"), "onnx/model.onnx",
                             ("'model.onnx_data'", "is too short for")),
    "external not fetched": ("gemma-dense", write("onnx/model.onnx_data", _POINTER),
                             "onnx/model.onnx_data", ("Git LFS pointer",)),
    "names that are no text": ("bert-cls", replace_bytes(
        "onnx/model.onnx", b"last_hidden_state", b"last_hidden_stat\xff"), "onnx/model.onnx",
        ("a name in it is not UTF-8",)),
    "weights of no type": ("bert-cls", edit_graph(lambda model: _retype(model, 127)),
                           "onnx/model.onnx", ("has type 127",)),
    # heads of tokens
    "malicious head": ("xlmr-bge-m3", both(remove("sparse_linear.safetensors"),
                                           malicious_pickle("sparse_linear.pt", "/tmp/never")),  # noqa: S108 - it is not to be made
                       "sparse_linear.pt", ("system'", "is not allowed")),
    "truncated head": ("xlmr-bge-m3", both(remove("colbert_linear.safetensors"),
                                           truncate("colbert_linear.pt")),
                       "colbert_linear.pt", ("cut short",)),
    "head of an old format": ("xlmr-bge-m3", both(remove("colbert_linear.safetensors"),
                                                  write("colbert_linear.pt", b"\x80\x02\x8a\n")),
                              "colbert_linear.pt", ("PyTorch 1.6",)),
    "head of two outputs": ("xlmr-bge-m3", reshape_tensor("sparse_linear.safetensors", "weight",
                                                          (2, 32)),
                            "sparse_linear.safetensors", ("bias", "[2]")),
    "head of another size": ("xlmr-bge-m3", reshape_tensor("colbert_linear.safetensors", "weight",
                                                           (32, 48)),
                             "colbert_linear.safetensors", ("weight", "[32, 48]", "hidden_size")),
    "head without weight": ("xlmr-bge-m3", drop_tensor("sparse_linear.safetensors", "weight"),
                            "sparse_linear.safetensors", ("weight is missing",)),
    "head without backbone": ("xlmr-bge-m3", both(remove("model.safetensors"),
                                                  remove("onnx/model.onnx")),
                              "model.safetensors", ("is missing",)),
    "token of no vocabulary": ("xlmr-bge-m3", edit("tokenizer_config.json", unk_token="<none>"),  # noqa: S106 - a token of text
                               "tokenizer_config.json", ("unk_token", "tokenizer.json")),
    "no special tokens": ("xlmr-bge-m3", both(write("tokenizer_config.json", "{}"),
                                              write("special_tokens_map.json", "{}")),
                          "tokenizer_config.json", ("cls_token",)),
    # sparse models
    "no SpladePooling": ("splade-bert", remove("1_SpladePooling/config.json"),
                         "1_SpladePooling/config.json", ("is missing",)),
    "bad activation": ("splade-bert", edit("1_SpladePooling/config.json",
                                           activation_function="gelu"),
                       "1_SpladePooling/config.json", ("activation_function", "log1p_relu")),
    "bad strategy": ("splade-bert", edit("1_SpladePooling/config.json", pooling_strategy="mean"),
                     "1_SpladePooling/config.json", ("pooling_strategy", "max")),
    "other vocabulary": ("splade-bert", edit("1_SpladePooling/config.json",
                                             word_embedding_dimension=30522), "config.json",
                         ("vocab_size is 1250", "30522", "SpladePooling")),
    "no masked-language head": ("splade-bert", drop_tensor("model.safetensors", _TRANSFORM),
                                "model.safetensors", (_TRANSFORM, "is missing")),
    "sparse by name alone": ("bert-mean", edit("config_sentence_transformers.json",
                                               model_type="SparseEncoder"), "modules.json",
                             ("SpladePooling",)),
    "unknown kind": ("bert-mean", edit("config_sentence_transformers.json",
                                       model_type="MultiVectorEncoder"),
                     "config_sentence_transformers.json", ("model_type", "'MultiVectorEncoder'")),
    # late interaction, which is refused
    # Late interaction
    "multi-vector module": ("bert-mean", retype_module(2, "MultiVectorMask"), "modules.json",
                            ("MultiVectorMask", "alone")),
    "projected tokens": ("bert-mean", retype_module(1, "Dropout"), "modules.json",
                         ("Normalize", "Pooling")),
    "pooled tokens": ("multi-vector-roberta", retype_module(3, "HierarchicalTokenPooling"),
                      "modules.json", ("[3].type", "'HierarchicalTokenPooling'")),
    "no late modules": ("multi-vector-roberta", remove("modules.json"), "modules.json",
                        ("is missing", "vector of each token")),
    "late and dense": ("colbert-pylate", edit("config_sentence_transformers.json",
                       model_type="SentenceTransformer"), "config_sentence_transformers.json",
                       ("model_type", "contradicts")),
    "no unit of tokens": ("multi-vector-roberta", edit("1_Dense/config.json",
                          module_input_name="sentence_embedding"), "1_Dense/config.json",
                          ("module_input_name", "token_embeddings")),
    "narrow tokens": ("colbert-pylate", edit("1_Dense/config.json", in_features=24), "config.json",
                      ("hidden_size is 32", "24")),
    "tokens to keep": ("multi-vector-roberta", edit("3_MultiVectorMask/config.json",
                       keep_only_token_ids=[5]), "3_MultiVectorMask/config.json",
                       ("keep_only_token_ids",)),
    "unknown role": ("multi-vector-roberta", edit("3_MultiVectorMask/config.json",
                     skiplist_tasks=["title"]), "3_MultiVectorMask/config.json",
                     ("skiplist_tasks", "query and document")),
    "unknown strategy": ("multi-vector-roberta", edit("sentence_bert_config.json",
                         query_expansion={"strategy": "max", "length": 12}),
                         "sentence_bert_config.json", ("query_expansion.strategy", "fixed or min")),
    "unknown expansion": ("multi-vector-roberta", edit("sentence_bert_config.json",
                          query_expansion={"strategy": "min", "length": 12, "side": "left"}),
                          "sentence_bert_config.json", ("query_expansion.side",)),
    "long expansion": ("multi-vector-roberta", edit("sentence_bert_config.json",
                       query_expansion={"strategy": "min", "length": 500}, query_length=None),
                       "sentence_bert_config.json", ("query_expansion.length", "at most 128")),
    "short query": ("multi-vector-roberta", edit("sentence_bert_config.json", query_length=8),
                    "sentence_bert_config.json", ("query_length", "12")),
    "no such filler": ("multi-vector-roberta", edit("sentence_bert_config.json", query_expansion={
                       "strategy": "min", "length": 12, "token": "[NONE]"}), "",
                       ("'[NONE]'", "query_expansion.token")),
    "filled from the left by an argument": (
        "colbert-pylate",
        edit("sentence_bert_config.json", tokenizer_args={"padding_side": "left"}),
        "tokenizer_config.json", ("padding_side", "right")),
    "filled from the left by its class": (
        "multi-vector-roberta", edit("tokenizer_config.json", tokenizer_class="GemmaTokenizer"),
        "tokenizer_config.json", ("GemmaTokenizer", "from the left", "padding_side")),
    "filled from the left": ("colbert-bert", edit("tokenizer_config.json", padding_side="left"),
                             "tokenizer_config.json", ("padding_side", "right")),
    "other interaction": ("colbert-bert", edit("artifact.metadata", interaction="flipr"),
                          "artifact.metadata", ("interaction", "colbert")),
    "other distance": ("colbert-bert", edit("artifact.metadata", similarity="l2"),
                       "artifact.metadata", ("similarity", "cosine")),
    "unknown of ColBERT": ("colbert-bert", edit("artifact.metadata", query_side=1), "",
                           ("artifact.metadata: query_side",)),
    "other projection": ("colbert-bert", edit("artifact.metadata", dim=8), "model.safetensors",
                         ("linear.weight", "[16, 32]", "[8, 32]")),
    "no projection": ("colbert-bert", drop_tensor("model.safetensors", "linear.weight"),
                      "model.safetensors", ("linear.weight is missing",)),
}  # fmt: skip


@pytest.mark.parametrize("row", _ROWS)
def test_the_message_is_one_line(tmp_path: Path, row: str) -> None:
    """The error for a broken folder names the file and the key."""
    fixture, break_, file, parts = _ROWS[row]
    folder = copy_fixture(fixture, tmp_path)
    break_(folder)
    with pytest.raises(ModelError) as caught:
        Runner.load(folder, tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / file) in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("fixture", sorted({row[0] for row in _ROWS.values()}))
def test_unbroken_folders_load(tmp_path: Path, fixture: str) -> None:
    """An unbroken copy of each fixture loads, so the errors above come from the damage."""
    assert Runner.load(copy_fixture(fixture, tmp_path), tmp_path / "cache").graph.outputs
