"""Finds the settings of a model that a command names."""

import re

from pydantic import ValidationError

from embedgrpc.models.errors import ModelError
from embedgrpc.server.model_settings import ModelSettings
from embedgrpc.server.settings import Settings

_NAME_AND_SOURCE = re.compile(r"(?P<name>[\w.-]{1,128})=(?P<source>.+)", re.ASCII)


def find_model(settings: Settings, source: str) -> ModelSettings:
    """Finds a model of the configuration by its name or its source.

    Args:
        settings: With the models of the configuration.
        source: As the command line has it.

    Returns:
        Its settings; those of an unconfigured model where the configuration does not name it.
    """
    for model in settings.models:
        if source in (model.source, model.name, *model.aliases):
            return model
    return ModelSettings(source=source)


def find_named_model(settings: Settings, text: str) -> ModelSettings:
    """Finds a model as `find_model` does, which may be given another name.

    Args:
        settings: With the models of the configuration.
        text: [NAME=]SOURCE, as the command line has it.

    Returns:
        Its settings, with that name.

    Raises:
        ModelError: No name can be taken from the source, and none is given.
    """
    both = _NAME_AND_SOURCE.fullmatch(text)
    if both:
        named = ModelSettings(source=both["source"], id=both["name"])
        found = find_model(settings, both["source"])
        return found.model_copy(update={"id": named.id})
    try:
        return find_model(settings, text)
    except ValidationError:
        raise ModelError(f"no name can be taken from {text!r}: give NAME=SOURCE") from None
