"""Puts the settings together: flags before variables before the file before defaults.

The only place that reads the environment for our own settings.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from embedgrpc.server.settings.settings import Settings

_PREFIX = "EMBEDGRPC_"
# Read by the command line and by the client: no settings of the server.
_OTHER_VARIABLES = {"EMBEDGRPC_CONFIG", "EMBEDGRPC_TARGET"}


class SettingsError(Exception):
    """The settings cannot be used; each line says what to change."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and where each came from.

    Attributes:
        settings: The settings.
        origins: For each setting its flag, its variable, the file, or "default".
        unknown_variables: Variables with our prefix that set nothing.
    """

    settings: Settings
    origins: Mapping[str, str]
    unknown_variables: tuple[str, ...]


def flag_name(setting: str) -> str:
    """Returns the flag of a setting: `--max-inputs`; `--model` for each of the models."""
    return "--model" if setting == "models" else "--" + setting.replace("_", "-")


def variable_name(setting: str) -> str:
    """Returns the environment variable of a setting: `EMBEDGRPC_MAX_INPUTS`."""
    return _PREFIX + setting.upper()


def configure(flags: Mapping[str, Any], config: Path | None) -> Configuration:
    """Resolves the settings.

    Args:
        flags: What the command line says, by setting.
        config: The TOML file, if any.

    Returns:
        The settings with their origins.

    Raises:
        SettingsError: A source cannot be read, or a value is out of its bounds.
    """
    variables = {
        setting: value
        for setting in Settings.model_fields
        if (value := os.environ.get(variable_name(setting)))
    }
    layers: tuple[tuple[Mapping[str, Any], Callable[[str], str]], ...] = (
        (_read_file(config) if config else {}, lambda _: str(config)),
        (variables, variable_name),
        (flags, flag_name),
    )
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for layer, name_origin in layers:
        values |= layer
        origins |= {setting: name_origin(setting) for setting in layer}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None
    return Configuration(settings, origins, _unknown_variables())


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None


def _unknown_variables() -> tuple[str, ...]:
    known = {variable_name(setting) for setting in Settings.model_fields} | _OTHER_VARIABLES
    return tuple(
        sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
    )


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        message = problem["msg"].removeprefix("Value error, ")
        if not place:
            lines.append(message)
            continue
        name = place[0] + "".join(f".{part}" for part in place[1:])
        origin = origins.get(place[0], "unknown")
        given = (
            ""
            if problem["type"] in ("missing", "extra_forbidden")
            else f", not {problem['input']!r}"
        )
        lines.append(f"{name} ({origin}): {message}{given}")
    return "\n".join(lines)
