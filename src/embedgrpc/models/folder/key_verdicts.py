"""Judges the keys of a model's files by the tables of `known_keys`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.config_keys import judge_config
from embedgrpc.models.folder.known_keys import (
    EXTRAS,
    LATE_EXTRAS,
    LATE_TRANSFORMER,
    METADATA,
    MODEL2VEC,
    MODULE_CONFIGS,
    MODULES,
    ROUTER,
    ROUTER_PARAMETERS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TRANSFORMER,
    Use,
)
from embedgrpc.models.folder.late_interaction import METADATA_NAME
from embedgrpc.models.folder.module_list import ModuleEntry, list_modules, read_module_list
from embedgrpc.models.folder.prompts import TASKS_KEY
from embedgrpc.models.folder.routing import Route
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.transformer_keys import judge_transformer
from embedgrpc.models.folder.verdict import KeyVerdict, judge


def judge_folder(
    root: Path,
    folder: Path,
    settings: JsonObject,
    *,
    is_built: bool,
    is_late: bool = False,
    table: TokenTable | None = None,
    looks_up_weights: bool = False,
    route: Route | None = None,
) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of a model's files.

    Args:
        root: The model's folder.
        folder: The backbone's folder.
        settings: The Transformer's file.
        is_built: Whether the graph is built from `config.json`. Otherwise an export contains what
            the model computes.
        is_late: Whether it is a model of late interaction.
        table: The table of a static model, if it is one. Such a model has fewer files.
        looks_up_weights: Whether a table of weights is in place of the backbone, which then has
            no `config.json`.
        route: The modules that texts pass, of a model with routes.

    Raises:
        ModelError: A file cannot be used.
    """
    if table is not None:
        if table.of_model2vec:
            yield from judge(JsonObject.read(root / "config.json", root), MODEL2VEC)
        extras = root / "config_sentence_transformers.json"
        yield from judge(JsonObject.read_if_present(extras, root), EXTRAS)
        yield from _judge_modules(root, route, has_tasks=False)
        return
    has_tasks = False
    if not looks_up_weights:
        config = JsonObject.read(folder / "config.json", root)
        has_tasks = bool(config.values.get(TASKS_KEY))
        yield from judge_config(config, is_built=is_built)
        yield from judge_transformer(settings, LATE_TRANSFORMER if is_late else TRANSFORMER)
    if is_late:
        yield from judge(JsonObject.read_if_present(root / METADATA_NAME, root), METADATA)
    for path, keys in (
        (root / "config_sentence_transformers.json", LATE_EXTRAS if is_late else EXTRAS),
        (folder / "tokenizer_config.json", TOKENIZER),
        (folder / "special_tokens_map.json", SPECIAL_TOKENS),
    ):
        yield from judge(JsonObject.read_if_present(path, root), keys)
    yield from _judge_modules(root, route, has_tasks=has_tasks)


def _judge_modules(root: Path, route: Route | None, *, has_tasks: bool) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of `modules.json` and of the modules' own files."""
    path = root / "modules.json"
    if not path.exists():
        return
    for module in read_module_list(root):
        yield from judge(module, MODULES)
    for router in route.routers if route else ():
        yield from judge(router, ROUTER)
        parameters = JsonObject(router.path, router.table("parameters"))
        yield from judge(parameters, ROUTER_PARAMETERS)
    entries: Sequence[ModuleEntry] = route.entries if route else list_modules(root)
    for entry in entries:
        if entry.has_own_code and not has_tasks:
            config = JsonObject(path, {"type": entry.type})
            yield KeyVerdict(
                config, "type", Use.UNKNOWN, f"{entry.type} is code of the model's own"
            )
        module_keys = MODULE_CONFIGS.get(entry.name)
        if module_keys is not None:
            config = JsonObject.read_if_present(root / entry.folder / "config.json", root)
            yield from judge(config, module_keys)


def _place(path: Path, root: Path) -> str:
    """Return a file's path in the model's folder, or its name: an adapter may be elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def summarize(verdicts: Iterable[KeyVerdict], root: Path) -> list[str]:
    """Return one line per file: how many keys are followed and harmless, and which are unknown."""
    files: dict[str, dict[Use, list[str]]] = {}
    for one in verdicts:
        place = _place(one.config.path, root)
        keys = files.setdefault(place, {}).setdefault(one.use, [])
        if one.key not in keys:
            keys.append(one.key)
    lines = []
    for place, uses in files.items():
        counts = [f"{len(keys)} {use}" for use, keys in uses.items() if use is not Use.UNKNOWN]
        counts += [f"accepted unknown {key}" for key in uses.get(Use.UNKNOWN, ())]
        lines.append(f"{place}: {', '.join(counts)}")
    return lines


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
            place = f"{_place(one.config.path, root)}: {one.key}"
            unknown.append(f"{place} ({one.advice})" if one.advice else place)
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
