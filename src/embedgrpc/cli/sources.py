"""Finds the settings of a model that a command names."""

import re

from pydantic import ValidationError

from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

_NAME_AND_SOURCE = re.compile(r"(?P<name>[\w.-]{1,128})=(?P<source>.+)", re.ASCII)


def find_model(settings: Settings, text: str) -> ModelSettings:
    """Find a model of the configuration by its name or its source.

    Args:
        settings: With the models of the configuration.
        text: [NAME=]SOURCE, as the command line has it.

    Returns:
        Its settings, with that name; those of an unconfigured model where the configuration does
        not name it.

    Raises:
        ModelError: The source cannot be one, or no name can be taken from it and none is given.
    """
    found = _find_configured(settings, text)
    if found is not None:
        return found
    both = _NAME_AND_SOURCE.fullmatch(text)
    if both is None:
        return _unconfigured(text)
    found = _find_configured(settings, both["source"])
    if found is not None:
        return found.model_copy(update={"id": both["name"]})
    return _unconfigured(both["source"], name=both["name"])


def _find_configured(settings: Settings, source: str) -> ModelSettings | None:
    for model in settings.models:
        if source in (model.source, model.name, *model.aliases):
            return model
    return None


def _unconfigured(source: str, *, name: str = "") -> ModelSettings:
    try:
        return ModelSettings(source=source, id=name)
    except ValidationError as error:
        (problem, *_) = error.errors()
        if not source:
            reason = "a model source is empty"
        elif problem["loc"]:
            reason = f"model source {source!r}: {problem['msg'].removeprefix('Value error, ')}"
        else:
            reason = f"no name can be taken from {source!r}: give NAME=SOURCE"
        raise ModelError(reason) from None
