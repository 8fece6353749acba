"""A flag for each setting, made from the settings themselves."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from embedgrpc.server.settings.configuration import Configuration, configure, flag_name
from embedgrpc.server.settings.settings import Settings


def add_flags(
    parser: argparse.ArgumentParser, settings: Iterable[str] = Settings.model_fields
) -> None:
    """Adds `--config` and the flags of settings, of all where none are named, to a parser."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with settings (variable EMBEDGRPC_CONFIG)",
    )
    for setting in settings:
        _add_flag(parser, setting, Settings.model_fields[setting])


def read_configuration(parsed: argparse.Namespace) -> Configuration:
    """Resolves the settings with the flags that were given.

    Raises:
        SettingsError: They cannot be used.
    """
    flags = {
        setting: value
        for setting in Settings.model_fields
        if (value := getattr(parsed, setting, None)) is not None
    }
    named = os.environ.get("EMBEDGRPC_CONFIG")
    return configure(flags, parsed.config or (Path(named) if named else None))


def _add_flag(parser: argparse.ArgumentParser, setting: str, info: FieldInfo) -> None:
    text = f"{info.description} (default: {_default(info)})".replace("%", "%%")
    options: dict[str, Any] = {"dest": setting, "default": None, "help": text}
    if setting == "models":
        options |= {"action": "append", "metavar": "[ALIAS=]SOURCE"}
    elif info.annotation is bool:
        options |= {"action": argparse.BooleanOptionalAction}
    elif get_origin(info.annotation) is Literal:
        options |= {"choices": get_args(info.annotation)}
    else:
        unit = setting.rpartition("_")[2]
        options |= {
            "metavar": {
                "s": "SECONDS",
                "ms": "MILLISECONDS",
                "us": "MICROSECONDS",
                "bytes": "BYTES",
            }.get(unit, "N" if info.annotation is int else "VALUE")
        }
    parser.add_argument(flag_name(setting), **options)


def _default(info: FieldInfo) -> str:
    if info.default is None:
        return "depends on other settings"
    if info.default in ((), {}, ""):
        return "none"
    return str(info.default)
