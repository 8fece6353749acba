"""Saves models with the reference libraries, and writes what these answer for them.

Runs in the reference's environment alone: `python maker.py FIXTURES OUT < SETTINGS`, one drawn
model a line, as `drawing.py` makes them. Each gets the folder OUT/SEED, with `expected.json`.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import sentence_transformers as st  # type: ignore[import-not-found]  # in that environment
import torch  # type: ignore[import-not-found]  # likewise
import transformers  # type: ignore[import-not-found]  # likewise
from sentence_transformers import models  # in that environment
from sentence_transformers.sparse_encoder import models as sparse  # type: ignore[import-not-found]  # likewise

HIDDEN = 32
# Room for tokens that are added.
SPARE_TOKENS = 160
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
Settings = dict[str, Any]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def _change(path: Path, changes: Settings) -> None:
    _write(path, (_read(path) if path.exists() else {}) | changes)


def _find_tokenizer(fixtures: Path, base: str) -> Settings:
    """Return `tokenizer.json` of a fixture, or one of another class made of it."""
    made = {
        "t5": ("<pad>", "</s>", "<unk>"),
        "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    }
    if base not in made:
        found: Settings = _read(fixtures / base / "tokenizer.json")
        return found
    names = made[base]
    found = _read(fixtures / "xlmr-metaspace" / "tokenizer.json")
    found["model"]["vocab"] = [[name, 0.0] for name in names] + found["model"]["vocab"][4:]
    found["model"]["unk_id"] = names.index("<unk>")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    found["added_tokens"] = [
        {"id": index, "content": name, "special": True, **flags} for index, name in enumerate(names)
    ]
    found["post_processor"] = None
    return found


def write_tokenizer(settings: Settings, fixtures: Path, folder: Path) -> int:
    """Write the files of the tokenizer; return the number of rows that its tokens need."""
    changes = dict(settings["tokenizer.json"])
    added = changes.pop("added", None)
    tokenizer = _find_tokenizer(fixtures, settings["base"]) | changes
    if added is not None:
        places = [token["id"] for token in tokenizer["added_tokens"]]
        place = max([*places, len(tokenizer["model"]["vocab"]) - 1]) + 1
        tokenizer["added_tokens"].append({"id": place, **added})
    _write(folder / "tokenizer.json", tokenizer)
    config: Settings = {}
    source = fixtures / settings["base"] / "tokenizer_config.json"
    if settings["keeps_tokenizer_config"] and source.exists():
        config = _read(source)
        config.pop("tokenizer_class", None)
        for key, value in config.items():
            if key.endswith("_token") and isinstance(value, dict):
                config[key] = {"__type": "AddedToken", **value}
    config |= settings["tokenizer_config.json"]
    padding = _find_padding(tokenizer)
    if settings["names_padding"] and padding:
        config.setdefault("pad_token", padding)
    if settings.get("chat_template"):
        config["chat_template"] = settings["chat_template"]
    _write(folder / "tokenizer_config.json", config)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if settings[name] is not None:
            _write(folder / name, settings[name])
    return len(tokenizer["model"]["vocab"]) + SPARE_TOKENS


def write_backbone(settings: Settings, folder: Path, rows: int, auto: Any, **more: Any) -> None:
    """Write `config.json` and random weights."""
    given, kind = settings["config"], settings["model_type"]
    values = {
        "vocab_size": rows,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "pad_token_id": _find_padding_id(folder),
        "initializer_range": 0.2,
        **given,
        **more,
    }
    if kind == "distilbert":
        values |= {"dim": HIDDEN, "n_heads": 4, "hidden_dim": 48}
        values |= {"n_layers": given["num_hidden_layers"], "activation": "gelu"}
    elif kind == "albert":
        values["embedding_size"] = 16
    elif kind == "qwen3":
        values |= {"num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu"}
    config = transformers.AutoConfig.for_model(kind, **values)
    torch.manual_seed(settings["seed"])
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def _find_padding(tokenizer: Settings) -> str:
    """Return the padding token, as models have it that were trained; empty without one."""
    names = {token["content"] for token in tokenizer["added_tokens"]}
    return next((one for one in ("<pad>", "[PAD]", "<|endoftext|>") if one in names), "")


def _find_padding_id(folder: Path) -> int:
    tokenizer = _read(folder / "tokenizer.json")
    name = _find_padding(tokenizer)
    return next((one["id"] for one in tokenizer["added_tokens"] if one["content"] == name), 0)


def save_embedding(settings: Settings, plain: Path, folder: Path) -> None:
    """Save a SentenceTransformer."""
    backbone = models.Transformer(str(plain))
    names = settings["poolings"]
    modules = [backbone, models.Pooling(HIDDEN, names if len(names) > 1 else names[0])]
    size = HIDDEN * len(names)
    for layer in settings["layers"]:
        if layer["kind"] == "Dense":
            activation = getattr(torch.nn, layer["activation"])()
            out, options = layer["out_features"], {"activation_function": activation}
            if layer["use_residual"]:
                options["use_residual"] = True
            modules.append(models.Dense(size, out, bias=layer["bias"], **options))
            size = out
        elif layer["kind"] == "LayerNorm":
            modules.append(models.LayerNorm(size))
        else:
            modules.append(models.Dropout(0.3))
    if settings["normalize"]:
        modules.append(models.Normalize())
    model = st.SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts=settings["prompts"] or None,
        default_prompt_name=settings["default_prompt_name"],
        similarity_fn_name=settings["similarity"],
        truncate_dim=settings["truncate_dim"],
    )
    model.save(str(folder), create_model_card=False)
    if settings["old_schema"]:
        _use_old_schema(folder, names)


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
        _write(
            folder / "1_Pooling/config.json",
            {"word_embedding_dimension": HIDDEN, **config, "include_prompt": True},
        )
    modules = _read(folder / "modules.json")
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    _write(folder / "modules.json", modules)


def make(settings: Settings, fixtures: Path, folder: Path) -> Settings:
    """Save a model, and return what the reference answers."""
    kind, plain = settings["kind"], folder.with_name(f"{folder.name}-plain")
    plain.mkdir(parents=True)
    rows = write_tokenizer(settings, fixtures, plain)
    auto = transformers.AutoModel
    labels = {}
    if kind == "cross":
        auto, labels = transformers.AutoModelForSequenceClassification, {"num_labels": 1}
    elif kind == "sparse":
        auto = transformers.AutoModelForMaskedLM
    write_backbone(settings, plain, rows, auto, **labels)
    if kind == "embedding":
        save_embedding(settings, plain, folder)
    elif kind == "sparse":
        pooling = sparse.SpladePooling(settings["strategy"], settings["activation"])
        sparse_model = st.SparseEncoder(
            modules=[sparse.MLMTransformer(str(plain)), pooling],
            device="cpu",
            max_active_dims=settings["max_active_dims"],
        )
        sparse_model.save(str(folder), create_model_card=False)
    elif settings["saved_again"]:
        options = {}
        if settings["activation"]:
            options["activation_fn"] = getattr(torch.nn, settings["activation"])()
        st.CrossEncoder(str(plain), device="cpu", **options).save(str(folder))
    else:
        shutil.copytree(plain, folder)
    if kind == "embedding" or (folder / "sentence_bert_config.json").exists():
        # As people edit these files, and older releases wrote them.
        _change(folder / "sentence_bert_config.json", settings["transformer"])
    for name in _TOKENIZER_FILES:
        if (plain / name).exists():
            shutil.copy(plain / name, folder / name)
    shutil.rmtree(plain)
    return answer(settings, folder)


def answer(settings: Settings, folder: Path) -> Settings:
    """Load a folder afresh, and return its answers, one input a time."""
    options: Settings = {"batch_size": 1, "show_progress_bar": False}
    kind = settings["kind"]
    if kind == "cross":
        model = st.CrossEncoder(str(folder), device="cpu")
        logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), **options)
        scores = model.predict(PAIRS, **options)
        return {"logits": logits.tolist(), "scores": scores.tolist()}
    if kind == "sparse":
        sparse_model = st.SparseEncoder(str(folder), device="cpu")
        found = sparse_model.encode(TEXTS, convert_to_sparse_tensor=False, **options)
        return {"ids": _tokenize(sparse_model, TEXTS), "vectors": found.cpu().tolist()}
    embedder = st.SentenceTransformer(str(folder), device="cpu")
    prompts = {
        name: embedder.encode(TEXTS[:3], prompt_name=name, **options).tolist()
        for name in settings["prompts"]
    }
    default = embedder.prompts.get(embedder.default_prompt_name or "", "")
    return {
        "ids": _tokenize(embedder, [default + text for text in TEXTS]),
        "vectors": embedder.encode(TEXTS, **options).tolist(),
        "prompts": prompts,
        "similarity": embedder.similarity_fn_name,
    }


def _tokenize(model: Any, texts: list[str]) -> list[list[int]]:
    return [model.tokenize([text])["input_ids"][0].tolist() for text in texts]


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
        _write(folder / "expected.json", expected)
        print(settings["seed"], flush=True)  # noqa: T201 - tells that the folder is complete


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
