"""Saves models with the reference libraries, and writes what these answer for them.

Runs in the reference's environment, from the root of the repository: `python -m
tests.reference.maker FIXTURES OUT < SETTINGS`, one drawn model a line, as `drawing.py` makes them.
Each gets the folder OUT/SEED, with `expected.json`.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import sentence_transformers as st  # type: ignore[import-not-found]  # in that environment
import torch  # type: ignore[import-not-found]  # likewise
import transformers  # type: ignore[import-not-found]  # likewise
from model2vec import StaticModel  # type: ignore[import-not-found]  # likewise
from sentence_transformers.sentence_transformer.modules import StaticEmbedding  # type: ignore[import-not-found]  # likewise

from tests.reference import saving
from tests.reference.plain_model import (
    Settings,
    read_json,
    write_backbone,
    write_json,
    write_tokenizer,
)

WORDS = "a long text goes on and on about towers rivers and the sea until it has to be cut "
TEXTS = [
    "the words of the text", "  blanks at both ends  ", "trailing newline\n\n",
    "tabs\tand  double   blanks", "Ünïcödé CASE Élan", "[Q] the query [D] doc", "a[Q]b",
    "the <mask> of [MASK] here", "<s>odd</s> [SEP] [CLS]", "x<|im_end|>y <|endoftext|> z",
    "\u5317\u4eac\u662f", "``quotes'' don't 12 345", "<MARK>word marker",
    "newword NEWWORD newwords", "a", "e\u0301 combining",
    "<extra_id_0> x", "<unk> [UNK] <pad> [PAD]", "\U0001f600 emoji",
    f"Once upon a time, a dragon slept. {WORDS * 4}At dawn, 7 knights rode home.",
]  # fmt: skip
PAIRS = [
    ("the query", "the document text"), ("a [Q]", "b <MARK> "), ("x", "z [MASK] y"),
    (WORDS, TEXTS[-1]), (TEXTS[-1], "short"), ("What is a tower?\n", f"Towers. {WORDS * 3}end"),
]  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TOLERANCE = 1e-5
# The libraries round vectors to the type of the table.
_HALF_TOLERANCE = 1e-3
_ONE_BY_ONE: Settings = {"batch_size": 1, "show_progress_bar": False}


def make(settings: Settings, fixtures: Path, folder: Path) -> Settings:
    """Save a model, and return what the reference answers."""
    kind, plain = settings["kind"], folder.with_name(f"{folder.name}-plain")
    plain.mkdir(parents=True)
    rows = write_tokenizer(settings, fixtures, plain)
    if kind in _HEADS:
        head, labels = _HEADS[kind]
        write_backbone(settings, plain, rows, head, **labels)
    save, answer = _KINDS[kind]
    save(settings, plain, folder)
    config = folder / "sentence_bert_config.json"
    if kind == "embedding" or config.exists():
        # As people edit these files, and older releases wrote them.
        found = read_json(config) if config.exists() else {}
        write_json(config, found | settings["transformer"])
    if kind in _HEADS and not settings.get("adds_markers"):
        for name in _TOKENIZER_FILES:
            if (plain / name).exists():
                shutil.copy(plain / name, folder / name)
    shutil.rmtree(plain)
    return answer(settings, folder)


def answer_pairs(_: Settings, folder: Path) -> Settings:
    """Load a cross-encoder afresh; return its logits and scores, one pair a time."""
    model = st.CrossEncoder(str(folder), device="cpu")
    logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), **_ONE_BY_ONE)
    return {"logits": logits.tolist(), "scores": model.predict(PAIRS, **_ONE_BY_ONE).tolist()}


def answer_sparse(_: Settings, folder: Path) -> Settings:
    """Load a SparseEncoder afresh; return the weights of all tokens, one text a time."""
    model = st.SparseEncoder(str(folder), device="cpu")
    found = model.encode(TEXTS, convert_to_sparse_tensor=False, **_ONE_BY_ONE)
    return {"ids": _tokenize(model, TEXTS), "vectors": found.cpu().tolist()}


def answer_vectors(settings: Settings, folder: Path) -> Settings:
    """Load a SentenceTransformer afresh; return vectors, one text a time."""
    model = st.SentenceTransformer(str(folder), device="cpu")
    prompts = {
        name: model.encode(TEXTS[:3], prompt_name=name, **_ONE_BY_ONE).tolist()
        for name in settings["prompts"]
    }
    default = model.prompts.get(model.default_prompt_name or "", "")
    return {
        "tolerance": _HALF_TOLERANCE if settings.get("dtype") == "float16" else _TOLERANCE,
        "ids": _tokenize(model, [default + text for text in TEXTS]),
        "vectors": model.encode(TEXTS, **_ONE_BY_ONE).tolist(),
        "prompts": prompts,
        "similarity": model.similarity_fn_name,
    }


def answer_model2vec(_: Settings, folder: Path) -> Settings:
    """Load a model of model2vec afresh; return vectors, one text a time."""
    model = StaticModel.from_pretrained(folder)
    found = [model.encode([text])[0].tolist() for text in TEXTS]
    half = model.embedding.dtype == "float16"
    return {"vectors": found, "tolerance": _HALF_TOLERANCE if half else _TOLERANCE}


def answer_late(_: Settings, folder: Path) -> Settings:
    """Load a MultiVectorEncoder afresh; return vectors and tokens of documents and queries."""
    model = st.MultiVectorEncoder(str(folder), device="cpu")
    options = {"convert_to_numpy": True, **_ONE_BY_ONE}
    vectors = {
        "document": model.encode_document(TEXTS, **options),
        "query": model.encode_query(TEXTS, **options),
    }
    return {
        role: {
            "vectors": [one.tolist() for one in rows],
            "ids": [
                model.preprocess([text], prompt=model.prompts.get(role), task=role)["input_ids"][
                    0
                ].tolist()
                for text in TEXTS
            ],
        }
        for role, rows in vectors.items()
    }


def _tokenize(model: Any, texts: list[str]) -> list[list[int]]:
    first = model[0]
    if isinstance(first, StaticEmbedding):
        return [first.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return [model.tokenize([text])["input_ids"][0].tolist() for text in texts]


# What transformers makes an encoder or decoder with.
_HEADS: dict[str, tuple[Any, Settings]] = {
    "embedding": (transformers.AutoModel, {}),
    "late": (transformers.AutoModel, {}),
    "cross": (transformers.AutoModelForSequenceClassification, {"num_labels": 1}),
    "sparse": (transformers.AutoModelForMaskedLM, {}),
    "causal": (transformers.AutoModelForCausalLM, {}),
}
_Save = Callable[[Settings, Path, Path], None]
_Answer = Callable[[Settings, Path], Settings]
_KINDS: dict[str, tuple[_Save, _Answer]] = {
    "embedding": (saving.save_embedding, answer_vectors),
    "static": (saving.save_static, answer_vectors),
    "model2vec": (saving.save_model2vec, answer_model2vec),
    "late": (saving.save_late, answer_late),
    "sparse": (saving.save_sparse, answer_sparse),
    "cross": (saving.save_cross, answer_pairs),
    "causal": (saving.save_causal, answer_pairs),
}


def main(fixtures: Path, out: Path) -> None:
    """Make the models of the lines of the standard input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        settings = json.loads(line)
        folder = out / str(settings["seed"])
        try:
            expected = make(settings, fixtures, folder)
        except Exception as error:  # noqa: BLE001 - the libraries and PyTorch raise anything
            expected = {"error": f"{type(error).__name__}: {error}"[:300]}
        folder.mkdir(exist_ok=True)
        expected |= {"settings": settings, "texts": TEXTS, "pairs": PAIRS}
        write_json(folder / "expected.json", expected)
        print(settings["seed"], flush=True)  # noqa: T201 - tells that the folder is complete


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
