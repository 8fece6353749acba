"""Reads how a model is to be used: prompts, similarity, activation, padding.

Each function raises a ModelError that names the file and the key that is wrong.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.limits import EDGE_POSITIONS
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.kinds import Activation, PaddingSide, Similarity

# Real models have up to a hundred, of some hundred characters.
_PROMPTS_MAX = 1024
_PROMPT_CHARACTERS_MAX = 65_536
_SHOWN_CHARACTERS = 64
_ACTIVATIONS = {"Sigmoid": Activation.SIGMOID, "Identity": Activation.IDENTITY}


def read_prompts(extras: JsonObject) -> Mapping[str, str]:
    """Reads the prompts by name; one without a text is empty."""
    prompts = {
        name: "" if prompt is None else prompt for name, prompt in extras.table("prompts").items()
    }
    if len(prompts) > _PROMPTS_MAX:
        raise extras.wrong("prompts", f"at most {_PROMPTS_MAX}, not {len(prompts)}")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise extras.wrong(f"prompts.{name}", "a string")
        if len(name) + len(prompt) > _PROMPT_CHARACTERS_MAX:
            raise extras.wrong(
                f"prompts.{name[:_SHOWN_CHARACTERS]}",
                f"at most {_PROMPT_CHARACTERS_MAX} characters with its name, not "
                f"{len(name) + len(prompt)}",
            )
    return prompts


def find_default_prompt_name(
    extras: JsonObject, prompts: Mapping[str, str], overrides: ModelOverrides
) -> str:
    """Finds the prompt that is taken where none is asked for; empty for none."""
    if overrides.default_prompt_name is not None:
        if overrides.default_prompt_name and overrides.default_prompt_name not in prompts:
            raise ModelError(
                f"{extras.path.parent}: default_prompt_name that is set must be one of the prompts "
                f"{', '.join(prompts) or '(there are none)'}"
            )
        return overrides.default_prompt_name
    name = extras.text("default_prompt_name", default="")
    if name and name not in prompts:
        raise extras.wrong("default_prompt_name", "a key of prompts")
    return name


def check_not_shortened(extras: JsonObject, dimensions: int) -> None:
    """Refuses a model whose vectors the reference cuts on its own.

    Raises:
        ModelError: It is one.
    """
    kept = extras.count("truncate_dim")
    if kept is not None and kept < dimensions:
        raise ModelError(
            f"{extras.path}: truncate_dim {kept} is not supported, as vectors have {dimensions} "
            "values: take it out, and ask for dimensions in requests"
        )


def read_similarity(extras: JsonObject, *, default: Similarity) -> Similarity:
    """Reads how two vectors are meant to be compared."""
    name = extras.text("similarity_fn_name", default=default)
    try:
        return Similarity(name)
    except ValueError:
        raise extras.wrong("similarity_fn_name", "one of " + ", ".join(Similarity)) from None


def activation_places(config: JsonObject, extras: JsonObject) -> Sequence[tuple[JsonObject, str]]:
    """Gives the files and keys where an activation may stand, as the reference looks for it."""
    nested = JsonObject(path=config.path, values=config.table("sentence_transformers"))
    return (
        (extras, "activation_fn"),
        (nested, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    )


def read_activation(config: JsonObject, extras: JsonObject) -> Activation:
    """Reads what turns a logit into a score; the sigmoid where no file says."""
    for where, key in activation_places(config, extras):
        dotted = where.text(key, default="")
        if dotted:
            activation = _ACTIVATIONS.get(dotted.rpartition(".")[2])
            if activation is None or not dotted.startswith("torch."):
                raise where.wrong(key, "torch's Sigmoid or Identity")
            return activation
    return Activation.SIGMOID


def find_padding_side(model_type: str, tokenizer_config: JsonObject) -> PaddingSide:
    """Finds where padding goes."""
    side = tokenizer_config.text("padding_side", default="right")
    if side not in {"left", "right"}:
        raise tokenizer_config.wrong("padding_side", "left or right")
    # These number positions from the left edge of the batch: padding there would shift a text's
    # positions, and its vector would depend on what it is batched with.
    return "right" if model_type in EDGE_POSITIONS else cast("PaddingSide", side)


def find_pad_token_id(
    folder: Path, root: Path, config: JsonObject, tokenizer_config: JsonObject
) -> int:
    """Finds the token that fills a batch.

    Args:
        folder: Of the backbone.
        root: The model's folder.
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.
    """
    # Padding is masked out; only graphs that number positions look at it, and they know the
    # id of config.json.
    pad_token_id = config.count("pad_token_id")
    if pad_token_id is not None:
        entries = config.count("vocab_size")
        if entries is not None and pad_token_id >= entries:
            raise config.wrong("pad_token_id", f"less than vocab_size, which is {entries}")
        return pad_token_id
    token = tokenizer_config.values.get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and (folder / "tokenizer.json").exists():
        tokenizer = JsonObject.read(folder / "tokenizer.json", root)
        for added in tokenizer.values.get("added_tokens") or ():
            if added.get("content") == content:
                return int(added["id"])
    raise ModelError(
        f"{config.path}: pad_token_id must be the id of the padding token; set pad_token_id for "
        "this model in the configuration"
    )
