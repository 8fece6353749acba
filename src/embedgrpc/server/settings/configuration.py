"""Reads the settings: flags win over variables, variables over the file, the file over defaults.

pydantic-settings would read the same places. It would not say where a value came from, and its
messages are written for the author of a program instead of its user.
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from embedgrpc.server.settings.expectations import expected
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

_PREFIX = "EMBEDGRPC_"
# Read by the command line and by the client.
_OTHER_VARIABLES = {
    "EMBEDGRPC_CONFIG",
    "EMBEDGRPC_TARGET",
    "EMBEDGRPC_API_KEY",
    "EMBEDGRPC_TOKEN",
}
_SHOWN_CHARACTERS_MAX = 64
_SHOWN_TYPES = (str, int, float)
# A problem with a key of a model is at ("models", INDEX, KEY, ...).
_PLACE_OF_MODEL = 2


class SettingsError(Exception):
    """The settings cannot be used; each line says what to change."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings and their origins.

    Attributes:
        settings: The settings.
        origins: For each setting its flag, its variable, the path of the file, or "default".
        unknown_variables: For each variable that has our prefix and sets nothing, a suggestion
            (see `did_you_mean`).
    """

    settings: Settings
    origins: Mapping[str, str]
    unknown_variables: Mapping[str, str]


def flag_name(setting: str) -> str:
    """Return the flag of a setting: `--max-inputs`; `--model` for the models."""
    return "--model" if setting == "models" else "--" + setting.replace("_", "-")


def variable_name(setting: str) -> str:
    """Return the environment variable of a setting: `EMBEDGRPC_MAX_INPUTS`."""
    return _PREFIX + setting.upper()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the most similar known name; empty if none is similar."""
    import difflib  # noqa: PLC0415 - only a mistake needs it

    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def configure(flags: Mapping[str, Any], config: Path | None) -> Configuration:
    """Read the settings.

    Args:
        flags: The values on the command line, by setting.
        config: The TOML file, if any.

    Raises:
        SettingsError: The file cannot be read, or a value cannot be used.
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
        raise SettingsError(_explain_all(error, origins)) from None
    return Configuration(settings, origins, _unknown_variables())


def explain(error: ValidationError, of: type[BaseModel] = Settings) -> list[tuple[str, str]]:
    """Return the name of the setting (empty if there is not one) and the text of each problem."""
    return [_explain(problem, of.model_fields) for problem in error.errors()]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None


def _unknown_variables() -> dict[str, str]:
    known = {variable_name(setting) for setting in Settings.model_fields} | _OTHER_VARIABLES
    names = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
    return {name: did_you_mean(name, known) for name in names}


def _explain_all(error: ValidationError, origins: Mapping[str, str]) -> str:
    return "\n".join(
        f"{name} ({origins.get(name.partition('.')[0], 'unknown')}): {problem}" if name else problem
        for name, problem in explain(error)
    )


def _explain(problem: Any, fields: Mapping[str, FieldInfo]) -> tuple[str, str]:
    place = problem["loc"]
    name = ".".join(map(str, place))
    if len(place) > _PLACE_OF_MODEL and place[0] == "models":
        fields, place = ModelSettings.model_fields, place[_PLACE_OF_MODEL:]
    given = problem["input"]
    shown = f", not {_shown(given)}" if name and isinstance(given, _SHOWN_TYPES) else ""
    match problem["type"]:
        case "value_error":
            message = str(problem["ctx"]["error"])
            return name, message if str(given) in message else f"{message}{shown}"
        case "extra_forbidden":
            return name, f"there is no such setting{did_you_mean(place[0], fields)}"
        case "missing":
            return name, "is missing"
        case _:
            return name, f"must be {expected(fields[place[0]])}{shown}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
