"""Saves drawn models of each kind as the reference libraries do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers as st  # type: ignore[import-not-found]  # in the reference's environment
import torch  # type: ignore[import-not-found]  # likewise
import transformers  # type: ignore[import-not-found]  # likewise
from model2vec import StaticModel  # type: ignore[import-not-found]  # likewise
from model2vec.model import quantize_model  # type: ignore[import-not-found]  # likewise
from sentence_transformers.base import modules as base  # type: ignore[import-not-found]  # likewise
from sentence_transformers.cross_encoder.modules import LogitScore  # type: ignore[import-not-found]  # likewise
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # type: ignore[import-not-found]  # likewise
from sentence_transformers.sentence_transformer import modules as dense  # type: ignore[import-not-found]  # likewise
from sentence_transformers.sparse_encoder import modules as sparse  # type: ignore[import-not-found]  # likewise
from tokenizers import Tokenizer

from tests.reference.plain_model import HIDDEN, Settings, read_json, write_json

_TOKENS = "token_embeddings"


def save_embedding(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a SentenceTransformer with an encoder."""
    names = settings["poolings"]
    pooling = dense.Pooling(HIDDEN, names if len(names) > 1 else names[0])
    layers = _make_layers(settings["layers"], HIDDEN * len(names))
    _save_vectors(settings, [dense.Transformer(str(plain)), pooling, *layers], folder)
    if settings["old_schema"]:
        _use_old_schema(folder, names)


def save_static(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a SentenceTransformer with a table of token vectors."""
    tokenizer, table = _make_table(settings, plain)
    layers = _make_layers(settings["layers"], HIDDEN)
    module = dense.StaticEmbedding(tokenizer, torch.from_numpy(table))
    if settings["dtype"] == "float16":
        layers = []
    _save_vectors(settings, [module, *layers], folder)


def save_model2vec(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a model of model2vec."""
    tokenizer, table = _make_table(settings | {"dtype": "float32"}, plain)
    generator, count = np.random.default_rng(settings["seed"]), len(table)
    options: Settings = {}
    if settings["rows"]:
        table = table[: settings["rows"]]
        options["token_mapping"] = generator.integers(0, len(table), count)
    if settings["has_factors"]:
        options["weights"] = generator.uniform(0.5, 2, count).astype(np.float32)
    limits = {"normalize": settings["normalize"], "max_length": settings["max_length"]}
    model = StaticModel(table, tokenizer, **limits, **options)
    if settings["dtype"] != "float32":
        model = quantize_model(model, quantize_to=settings["dtype"])
    model.save_pretrained(folder)


def save_late(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a MultiVectorEncoder."""
    names = ("query_length", "document_length", "query_expansion")
    backbone = base.Transformer(str(plain), **{name: settings[name] for name in names})
    markers = settings["markers"]
    if settings["adds_markers"]:
        added = [transformers.AddedToken(one, normalized=False, special=True) for one in markers]
        backbone.tokenizer.add_special_tokens({"additional_special_tokens": added})
    layers = _make_layers(settings["layers"], HIDDEN, module_input_name=_TOKENS)
    mask = MultiVectorMask(settings["skip_words"], skiplist_tasks=settings["skip_roles"])
    unit = [base.Normalize(module_input_name=_TOKENS)] if settings["normalize"] else []
    model = st.MultiVectorEncoder(
        modules=[backbone, *layers, mask, *unit],
        prompts=dict(zip(("query", "document"), markers, strict=True)),
        similarity_fn_name=settings["similarity"],
        device="cpu",
    )
    model.save_pretrained(str(folder), create_model_card=False)


def save_sparse(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a SparseEncoder with a masked-language head."""
    pooling = sparse.SpladePooling(settings["strategy"], settings["activation"])
    model = st.SparseEncoder(
        modules=[sparse.MLMTransformer(str(plain)), pooling],
        device="cpu",
        max_active_dims=settings["max_active_dims"],
    )
    model.save(str(folder), create_model_card=False)


def save_cross(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a CrossEncoder, or keep the folder that transformers saved."""
    if not settings["saved_again"]:
        shutil.copytree(plain, folder)
        return
    st.CrossEncoder(str(plain), device="cpu", **_find_activation(settings)).save(str(folder))


def save_causal(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a CrossEncoder that scores by the logits of tokens."""
    options: Settings = {}
    if settings["adds_generation_prompt"]:
        options["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    backbone = base.Transformer(str(plain), transformer_task="text-generation", **options)
    modules = [backbone, LogitScore(*settings["tokens"])]
    model = st.CrossEncoder(modules=modules, device="cpu", **_find_activation(settings))
    model.save_pretrained(str(folder))


def _find_activation(settings: Settings) -> Settings:
    name = settings["activation"]
    return {"activation_fn": getattr(torch.nn, name)()} if name else {}


def _make_table(settings: Settings, plain: Path) -> tuple[Tokenizer, Any]:
    """Return a tokenizer and a vector for each of its tokens."""
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    count = max(tokenizer.get_vocab().values()) + 1
    table = np.random.default_rng(settings["seed"]).standard_normal((count, HIDDEN))
    return tokenizer, table.astype(settings["dtype"])


def _make_layers(drawn: list[Settings], size: int, **more: Any) -> list[Any]:
    """Return layers that follow vectors of a size."""
    modules: list[Any] = []
    for layer in drawn:
        if layer["kind"] == "Dense":
            out, activation = layer["out_features"], getattr(torch.nn, layer["activation"])()
            options = {"activation_function": activation, **more}
            if layer["use_residual"]:
                options["use_residual"] = True
            modules.append(base.Dense(size, out, bias=layer["bias"], **options))
            size = out
        elif layer["kind"] == "LayerNorm":
            modules.append(dense.LayerNorm(size))
        else:
            modules.append(dense.Dropout(0.3))
    return modules


def _save_vectors(settings: Settings, modules: list[Any], folder: Path) -> None:
    model = st.SentenceTransformer(
        modules=[*modules, *([base.Normalize()] if settings["normalize"] else [])],
        device="cpu",
        prompts=settings["prompts"] or None,
        default_prompt_name=settings["default_prompt_name"],
        similarity_fn_name=settings["similarity"],
        truncate_dim=settings["truncate_dim"],
    )
    model.save(str(folder), create_model_card=False)


def _use_old_schema(folder: Path, poolings: list[str]) -> None:
    """Describe the modules as releases before 5.4 did."""
    flags = {
        "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }  # fmt: skip
    # Old files name poolings in a fixed order; another one cannot be written so.
    if poolings == [name for name in flags if name in poolings]:
        config = {f"pooling_mode_{flag}": name in poolings for name, flag in flags.items()}
        write_json(
            folder / "1_Pooling/config.json",
            {"word_embedding_dimension": HIDDEN, **config, "include_prompt": True},
        )
    modules = read_json(folder / "modules.json")
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    write_json(folder / "modules.json", modules)
