from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.models.runner import Runner, copy_fixture, edit_json
from tests.models.sparse_vectors import assert_reference


def _as_roberta(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Positions start after the padding id, which is 0 here."""
    table = "bert.embeddings.position_embeddings.weight"
    tensors[table] = np.concatenate([np.zeros((1, 32), np.float32), tensors[table]])
    types = "bert.embeddings.token_type_embeddings.weight"
    tensors[types] = tensors[types][:1]
    _rename(
        tensors,
        ("cls.predictions.transform.dense", "lm_head.dense"),
        ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
        ("cls.predictions.", "lm_head."),
        ("bert.", "roberta."),
    )
    return {"model_type": "roberta", "max_position_embeddings": 81, "type_vocab_size": 1}


def _as_distilbert(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Without token types; their first row is added to the positions."""
    types = tensors.pop("bert.embeddings.token_type_embeddings.weight")
    tensors["bert.embeddings.position_embeddings.weight"] += types[0]
    _rename(
        tensors,
        ("cls.predictions.transform.dense", "vocab_transform"),
        ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
        ("cls.predictions.decoder", "vocab_projector"),
        ("cls.predictions.bias", "vocab_projector.bias"),
        ("bert.encoder.", "distilbert.transformer."),
        ("attention.self.query", "attention.q_lin"),
        ("attention.self.key", "attention.k_lin"),
        ("attention.self.value", "attention.v_lin"),
        ("attention.output.dense", "attention.out_lin"),
        ("attention.output.LayerNorm", "sa_layer_norm"),
        ("intermediate.dense", "ffn.lin1"),
        ("output.dense", "ffn.lin2"),
        ("output.LayerNorm", "output_layer_norm"),
        ("bert.embeddings", "distilbert.embeddings"),
    )
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "activation": "gelu"}
    return {"model_type": "distilbert", **sizes}


def _as_mpnet(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Without token types; positions start after the padding id 1; biases by distance are 0."""
    types = tensors.pop("bert.embeddings.token_type_embeddings.weight")
    table = "bert.embeddings.position_embeddings.weight"
    tensors[table] = np.concatenate([np.zeros((2, 32), np.float32), tensors[table] + types[0]])
    tensors["bert.encoder.relative_attention_bias.weight"] = np.zeros((32, 4), np.float32)
    _rename(
        tensors,
        ("cls.predictions.transform.dense", "lm_head.dense"),
        ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
        ("cls.predictions.", "lm_head."),
        ("attention.self.query", "attention.attn.q"),
        ("attention.self.key", "attention.attn.k"),
        ("attention.self.value", "attention.attn.v"),
        ("attention.output.dense", "attention.attn.o"),
        ("attention.output.LayerNorm", "attention.LayerNorm"),
        ("bert.", "mpnet."),
    )
    return {"model_type": "mpnet", "max_position_embeddings": 82, "pad_token_id": 1}


def _as_electra(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """With other names only."""
    _rename(
        tensors,
        ("cls.predictions.transform.", "generator_predictions."),
        ("cls.predictions.decoder", "generator_lm_head"),
        ("cls.predictions.bias", "generator_lm_head.bias"),
        ("bert.", "electra."),
    )
    return {"model_type": "electra", "embedding_size": 32}


def _rename(tensors: dict[str, NDArray[Any]], *changes: tuple[str, str]) -> None:
    for name in list(tensors):
        renamed = name
        for old, new in changes:
            renamed = renamed.replace(old, new)
        tensors[renamed] = tensors.pop(name)


@pytest.mark.parametrize("change", [_as_roberta, _as_distilbert, _as_mpnet, _as_electra])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_of_other_families(
    tmp_path: Path,
    change: Callable[[dict[str, NDArray[Any]]], dict[str, Any]],
    *,
    tied: bool,
) -> None:
    """The same model with the names of another family returns the same weights."""
    folder = copy_fixture("splade-bert", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("cls.predictions.decoder.weight", None)
    tensors.pop("cls.predictions.decoder.bias", None)
    if not tied:
        words = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = words.copy()
    edit_json(folder / "config.json", **change(tensors), tie_word_embeddings=tied)
    save_file(tensors, folder / "model.safetensors")
    assert_reference(Runner.load(folder, tmp_path / "cache"))
