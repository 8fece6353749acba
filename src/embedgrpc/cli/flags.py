"""A flag for each setting, generated from the settings."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from embedgrpc.server.settings.configuration import (
    Configuration,
    SettingsError,
    configure,
    flag_name,
)
from embedgrpc.server.settings.expectations import choices
from embedgrpc.server.settings.model_settings import ModelSettings, default_model, split_source
from embedgrpc.server.settings.settings import Settings, settings_by_group

_UNITS = {
    "file": "FILE",
    "s": "SECONDS",
    "ms": "MILLISECONDS",
    "us": "MICROSECONDS",
    "bytes": "BYTES",
}


def add_flags(
    parser: argparse.ArgumentParser, settings: Iterable[str] = Settings.model_fields
) -> None:
    """Add `--config` and the flags of some settings, by default of all."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with settings (variable EMBEDGRPC_CONFIG)",
    )
    for title, names in settings_by_group().items():
        wanted = [name for name in names if name in settings]
        if not wanted:
            continue
        group = parser.add_argument_group(title.lower())
        for setting in wanted:
            _add_flag(group, setting, Settings.model_fields[setting])
        if "models" in wanted:
            _add_model_flags(group, dest="models")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of one model to a command whose arguments are sources; see `model_keys`."""
    _add_model_flags(parser.add_argument_group("one model"), dest="model_keys")


def read_configuration(parsed: argparse.Namespace) -> Configuration:
    """Read the settings, with the flags that were given.

    Raises:
        SettingsError: They cannot be used.
    """
    flags = {
        setting: value
        for setting in Settings.model_fields
        if (value := getattr(parsed, setting, None)) is not None
    }
    if "models" in flags:
        flags["models"] = _complete_models(flags["models"])
    named = os.environ.get("EMBEDGRPC_CONFIG")
    return configure(flags, parsed.config or (Path(named) if named else None))


def model_keys(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the keys that `add_model_flags` read, by name."""
    return dict(*(parsed.model_keys or ()))


def _complete_models(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the models with id and source; keys before any `--model` are for the default model."""
    first, *others = models
    if "source" not in first and others:
        key = next(iter(first))
        raise SettingsError(f"--model-{key.replace('_', '-')}: put it after the --model it is for")
    if "source" not in first:
        return [default_model().model_dump(include={"id", "aliases", "source"}) | first]
    completed = []
    for model in models:
        model_id, source = split_source(model["source"])
        completed.append({"id": model_id, **model, "source": source})
    return completed


def _add_flag(group: Any, setting: str, info: FieldInfo) -> None:
    text = f"{info.description} (default: {_default(info)})".replace("%", "%%")
    options: dict[str, Any] = {"dest": setting, "default": None, "help": text}
    if setting == "models":
        options |= {"action": _SetKey, "key": "source", "metavar": "[ID=]SOURCE"}
    elif get_origin(info.annotation) is tuple:
        options |= {"action": "append", "metavar": _metavar(setting, info)}
    elif info.annotation in (bool, bool | None):
        options |= {"action": argparse.BooleanOptionalAction}
    else:
        options |= {"metavar": _metavar(setting, info)}
    group.add_argument(flag_name(setting), **options)


def _add_model_flags(group: Any, *, dest: str) -> None:
    for key, info in ModelSettings.model_fields.items():
        if key == "source":
            continue
        options: dict[str, Any] = {"dest": dest, "default": None, "action": _SetKey, "key": key}
        text = f"for one model: {info.description}".replace("%", "%%")
        group.add_argument(
            f"--model-{key.replace('_', '-')}", **options, metavar=_metavar(key, info), help=text
        )


class _SetKey(argparse.Action):
    """Collects models as tables: a source begins one, and other keys belong to the last one."""

    def __init__(self, *arguments: Any, key: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._key = key

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        option_string: str | None = None,
    ) -> None:
        """Add a value to the models."""
        del parser, option_string
        models = [*(getattr(namespace, self.dest) or [])]
        if self._key == "source" or not models:
            models.append({})
        if self._key == "prompts":
            value = [*models[-1].get("prompts", ()), value]
        models[-1][self._key] = value
        setattr(namespace, self.dest, models)


def _metavar(name: str, info: FieldInfo) -> str:
    if names := choices(info):
        return "|".join(names)
    if info.annotation in (bool, bool | None):
        return "true|false"
    if name == "prompts":
        return "NAME=TEXT"
    number = "N" if info.annotation in (int, int | None) else "VALUE"
    return _UNITS.get(name.rpartition("_")[2], number)


def _default(info: FieldInfo) -> str:
    if info.default is None:
        return "depends on other settings"
    if info.default in ((), {}, ""):
        return "none"
    return str(info.default)
