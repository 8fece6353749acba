"""Saves a model of each kind with random weights, of the size of the default model.

Runs in the environment that `uv run poe reference` makes: `python -m benchmarks.make_kinds MODEL
OUT`, where MODEL is the folder of the default model, whose tokenizer they take. `benchmarks.kinds`
starts it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers as st  # type: ignore[import-not-found]  # in the reference's environment
import torch  # type: ignore[import-not-found]  # likewise
import transformers  # type: ignore[import-not-found]  # likewise
from model2vec import StaticModel  # type: ignore[import-not-found]  # likewise
from sentence_transformers.base import modules as base  # type: ignore[import-not-found]  # likewise
from sentence_transformers.cross_encoder.modules import LogitScore  # type: ignore[import-not-found]  # likewise
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # type: ignore[import-not-found]  # likewise
from sentence_transformers.sentence_transformer import modules as dense  # type: ignore[import-not-found]  # likewise
from sentence_transformers.sparse_encoder import modules as sparse  # type: ignore[import-not-found]  # likewise
from tokenizers import Tokenizer

HIDDEN, INNER, GATED = 384, 1536, 1024
_TOKENS_MAX = 256
_SIZES = {
    "vocab_size": 30_522,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
_DECODER = {"intermediate_size": GATED, "num_key_value_heads": 4, "head_dim": 32}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"intermediate_size": INNER}),
    "modernbert": ("modernbert", {"intermediate_size": GATED, "local_attention": 128}),
    "nomic-bert": ("nomic_bert", {"intermediate_size": GATED}),
    "gte": ("gte", {"intermediate_size": GATED}),
    "qwen3": ("qwen3", _DECODER),
    "gemma3": ("gemma3_text", {**_DECODER, "use_bidirectional_attention": True}),
}
_TEMPLATE = (
    "Judge. Query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') "
    "| first }}\nDocument: {{ messages | selectattr('role', 'eq', 'document') "
    "| map(attribute='content') | first }}\nAnswer:"
)


def save_plain(source: Path, plain: Path, name: str, auto: Any, **more: Any) -> None:
    """Save an encoder or decoder with a tokenizer."""
    kind, sizes = _CONFIGS[name]
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **{**_SIZES, **sizes, **more})
    auto.from_config(config).eval().save_pretrained(plain)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = _TOKENS_MAX
    tokenizer.save_pretrained(plain)


def make_all(source: Path, out: Path) -> None:
    """Save all models; the name of a folder begins with what it is for."""
    plain = out / "plain"
    for name in _CONFIGS:
        save_plain(source, plain, name, transformers.AutoModel)
        pooling = "lasttoken" if name == "qwen3" else "mean"
        modules = [dense.Transformer(str(plain)), dense.Pooling(HIDDEN, pooling), base.Normalize()]
        st.SentenceTransformer(modules=modules, device="cpu").save(
            str(out / f"embed-{name}"), create_model_card=False
        )
        shutil.rmtree(plain)
    for name in ("bert", "modernbert"):
        save_plain(source, plain, name, transformers.AutoModelForMaskedLM)
        splade = [sparse.MLMTransformer(str(plain)), sparse.SpladePooling("max")]
        st.SparseEncoder(modules=splade, device="cpu").save(
            str(out / f"sparse-{name}"), create_model_card=False
        )
        shutil.rmtree(plain)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, model_max_length=_TOKENS_MAX)
    weights = torch.rand(len(tokenizer.get_vocab())) * 6
    st.SparseEncoder(
        modules=[sparse.SparseStaticEmbedding(tokenizer, weights, frozen=True)], device="cpu"
    ).save(str(out / "sparse-look-up"), create_model_card=False)
    save_plain(source, plain, "bert", transformers.AutoModel)
    tokens = "token_embeddings"
    modules = [
        base.Transformer(str(plain), query_length=32, document_length=_TOKENS_MAX),
        base.Dense(HIDDEN, 128, bias=False, module_input_name=tokens),
        MultiVectorMask([".", ","]),
        base.Normalize(module_input_name=tokens),
    ]
    st.MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(
        str(out / "late-bert"), create_model_card=False
    )
    shutil.rmtree(plain)
    scored = transformers.AutoModelForSequenceClassification
    for name in ("bert", "modernbert", "gte"):
        save_plain(source, out / f"rerank-{name}", name, scored, num_labels=1)
    save_plain(source, out / "classify-bert", "bert", scored, num_labels=5)
    save_plain(source, plain, "qwen3", transformers.AutoModelForCausalLM)
    transformer = base.Transformer(str(plain), transformer_task="text-generation")
    transformer.tokenizer.chat_template = _TEMPLATE
    st.CrossEncoder(modules=[transformer, LogitScore(2748, 2053)], device="cpu").save_pretrained(
        str(out / "rerank-qwen3-causal")
    )
    shutil.rmtree(plain)
    table = np.random.default_rng(1).standard_normal((_SIZES["vocab_size"], 256))
    plain_tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    plain_tokenizer.no_padding()
    plain_tokenizer.no_truncation()
    StaticModel(table.astype(np.float32), plain_tokenizer, normalize=True).save_pretrained(
        out / "embed-model2vec"
    )


if __name__ == "__main__":
    make_all(Path(sys.argv[1]), Path(sys.argv[2]))
