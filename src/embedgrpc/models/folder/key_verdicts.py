"""Judges the keys of a model's files by the tables of `known_keys`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject, read_json
from embedgrpc.models.folder.known_keys import (
    CONFIG,
    EXTRAS,
    LOADER_ARGUMENTS,
    MODEL2VEC,
    MODULE_CONFIGS,
    MODULES,
    NESTED_ADVICE,
    SPECIAL_TOKENS,
    TOKENIZER,
    TRANSFORMER,
    Keys,
    Use,
)
from embedgrpc.models.folder.token_table import TokenTable

# The keys of the Transformer's file that hold such arguments.
_ARGUMENTS = (
    "tokenizer_args", "processor_kwargs", "model_args", "model_kwargs", "config_args",
    "config_kwargs",
)  # fmt: skip
_TOKENIZER_ARGUMENTS = _ARGUMENTS[:2]
_TASKS = frozenset({"feature-extraction", "fill-mask", "sequence-classification"})


# The architectures whose graph is built here, so that `config.json` says what is computed.
_BUILT = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra", "albert"}
)


@dataclass(frozen=True, slots=True)
class KeyVerdict:
    """What is done with one key of a file.

    Attributes:
        config: The file.
        key: The key.
        use: What is done with it.
        advice: What to do if it is refused.
    """

    config: JsonObject
    key: str
    use: Use
    advice: str = ""


def judge(config: JsonObject, keys: Keys) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of a file; null values count as absent."""
    for key, value in config.values.items():
        if value is None:
            continue
        use = keys.use_of(key)
        if use is Use.REFUSED and not value:
            use = Use.HARMLESS
        yield KeyVerdict(config, key, use, keys.refused.get(key, ""))


def judge_folder(
    root: Path,
    folder: Path,
    settings: JsonObject,
    *,
    is_built: bool,
    table: TokenTable | None = None,
) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of a model's files.

    Args:
        root: The model's folder.
        folder: The backbone's folder.
        settings: The Transformer's file.
        is_built: Whether the graph is built from `config.json`. Otherwise an export contains what
            the model computes.
        table: The table of a static model, if it is one. Such a model has fewer files.

    Raises:
        ModelError: A file cannot be used.
    """
    if table is not None:
        if table.of_model2vec:
            yield from judge(JsonObject.read(root / "config.json", root), MODEL2VEC)
        extras = root / "config_sentence_transformers.json"
        yield from judge(JsonObject.read_if_present(extras, root), EXTRAS)
        yield from _judge_modules(root)
        return
    config = JsonObject.read(folder / "config.json", root)
    if is_built:
        knows_all = config.text("model_type", default="") in _BUILT
        for one in judge(config, CONFIG):
            if knows_all or one.use is not Use.UNKNOWN:
                yield one
    yield from judge_transformer(settings)
    for path, keys in (
        (root / "config_sentence_transformers.json", EXTRAS),
        (folder / "tokenizer_config.json", TOKENIZER),
        (folder / "special_tokens_map.json", SPECIAL_TOKENS),
    ):
        yield from judge(JsonObject.read_if_present(path, root), keys)
    yield from _judge_modules(root)


def _judge_modules(root: Path) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of `modules.json` and of the modules' own files."""
    modules = root / "modules.json"
    for entry in read_json(modules, root) if modules.exists() else ():
        module = JsonObject(modules, entry)
        yield from judge(module, MODULES)
        module_keys = MODULE_CONFIGS.get(module.text("type", default="").rpartition(".")[2])
        if module_keys is not None:
            path = root / module.text("path", default="") / "config.json"
            yield from judge(JsonObject.read_if_present(path, root), module_keys)


def summarize(verdicts: Iterable[KeyVerdict], root: Path) -> list[str]:
    """Return one line per file: how many keys are followed and harmless, and which are unknown."""
    files: dict[str, dict[Use, list[str]]] = {}
    for one in verdicts:
        place = one.config.path.relative_to(root).as_posix()
        keys = files.setdefault(place, {}).setdefault(one.use, [])
        if one.key not in keys:
            keys.append(one.key)
    lines = []
    for place, uses in files.items():
        counts = [f"{len(keys)} {use}" for use, keys in uses.items() if use is not Use.UNKNOWN]
        counts += [f"accepted unknown {key}" for key in uses.get(Use.UNKNOWN, ())]
        lines.append(f"{place}: {', '.join(counts)}")
    return lines


def judge_transformer(config: JsonObject) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of the Transformer's file, and with nested arguments."""
    yield from judge(config, TRANSFORMER)
    task = config.text("transformer_task", default="feature-extraction")
    if task not in _TASKS:
        yield KeyVerdict(
            config,
            "transformer_task",
            Use.REFUSED,
            f"it is {task}, not one of {', '.join(sorted(_TASKS))}",
        )
    for key in _ARGUMENTS:
        nested = JsonObject(config.path, config.table(key))
        for one in judge(nested, LOADER_ARGUMENTS):
            use, followed = one.use, key in _TOKENIZER_ARGUMENTS
            if use is Use.FOLLOWED and not followed:
                use = Use.UNKNOWN
            yield KeyVerdict(config, f"{key}.{one.key}", use, NESTED_ADVICE)


def merge_arguments(tokenizer_config: JsonObject, settings: JsonObject) -> JsonObject:
    """Return `tokenizer_config.json` with the arguments in the Transformer's file that win."""
    values = dict(tokenizer_config.values)
    for key in _TOKENIZER_ARGUMENTS:
        arguments = settings.table(key)
        values.update({k: v for k, v in arguments.items() if k in LOADER_ARGUMENTS.followed})
    return JsonObject(tokenizer_config.path, values)


def check_keys(
    verdicts: Iterable[KeyVerdict], root: Path, *, accept_unknown: bool
) -> Mapping[str, Any]:
    """Check that no key is refused.

    Args:
        verdicts: Those of all keys of a model's files.
        root: The model's folder.
        accept_unknown: Whether the configuration accepts unknown keys.

    Returns:
        The values of the unknown keys that were accepted, by "FILE: KEY".

    Raises:
        ModelError: A key is refused, or unknown and not accepted.
    """
    accepted: dict[str, Any] = {}
    unknown: list[str] = []
    for one in verdicts:
        if one.use is Use.REFUSED:
            raise ModelError(f"{one.config.path}: {one.key} is not supported: {one.advice}")
        if one.use is Use.UNKNOWN:
            place = f"{one.config.path.relative_to(root).as_posix()}: {one.key}"
            unknown.append(place)
            accepted[place] = _find(one.config.values, one.key)
    if unknown and not accept_unknown:
        shown = "; ".join(unknown[:_SHOWN_MAX])
        more = f" and {len(unknown) - _SHOWN_MAX} more" if len(unknown) > _SHOWN_MAX else ""
        raise ModelError(
            f"{root}: it is unknown whether these keys change results: {shown}{more}: remove them,"
            " or set accept_unknown_keys for this model in the configuration"
        )
    return accepted


_SHOWN_MAX = 8


def _find(values: Mapping[str, Any], key: str) -> Any:
    if key in values:
        return values[key]
    outer, _, inner = key.partition(".")
    return values[outer][inner]
