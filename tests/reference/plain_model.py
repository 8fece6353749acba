"""Writes the tokenizer, the configuration and the random weights of a drawn model."""

import json
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # in the reference's environment
import transformers  # type: ignore[import-not-found]  # likewise

HIDDEN = 32
# Room for tokens that are added.
SPARE_TOKENS = 160
Settings = dict[str, Any]


def read_json(path: Path) -> Any:
    """Read a file of JSON."""
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON."""
    path.write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def find_tokenizer(fixtures: Path, base: str) -> Settings:
    """Return `tokenizer.json` of a fixture, or one of another class made of it."""
    made = {
        "t5": ("<pad>", "</s>", "<unk>"),
        "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    }
    if base not in made:
        found: Settings = read_json(fixtures / base / "tokenizer.json")
        return found
    names = made[base]
    found = read_json(fixtures / "xlmr-metaspace" / "tokenizer.json")
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
    tokenizer = find_tokenizer(fixtures, settings["base"]) | changes
    if added is not None:
        places = [token["id"] for token in tokenizer["added_tokens"]]
        place = max([*places, len(tokenizer["model"]["vocab"]) - 1]) + 1
        tokenizer["added_tokens"].append({"id": place, **added})
    write_json(folder / "tokenizer.json", tokenizer)
    config: Settings = {}
    source = fixtures / settings["base"] / "tokenizer_config.json"
    if settings["keeps_tokenizer_config"] and source.exists():
        config = read_json(source)
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
    write_json(folder / "tokenizer_config.json", config)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if settings[name] is not None:
            write_json(folder / name, settings[name])
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
    tokenizer = read_json(folder / "tokenizer.json")
    name = _find_padding(tokenizer)
    return next((one["id"] for one in tokenizer["added_tokens"] if one["content"] == name), 0)
