"""Finds the settings of a model that a command names."""

from pydantic import ValidationError

from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.model_settings import ModelSettings, split_source
from embedgrpc.server.settings.settings import Settings


def find_model(settings: Settings, text: str) -> ModelSettings:
    """Find a model of the configuration by its name or its source.

    Args:
        settings: With the models of the configuration.
        text: [ID=]SOURCE, as the command line has it.

    Returns:
        Its settings, with that id; those of an unconfigured model where the configuration does
        not name it.

    Raises:
        ModelError: The source cannot be one, or no name can be taken from it and none is given.
    """
    found = _find_configured(settings, text)
    if found is not None:
        return found
    identifier, source = split_source(text)
    if not identifier:
        return _unconfigured(text)
    found = _find_configured(settings, source)
    if found is not None:
        return found.model_copy(update={"id": identifier})
    return _unconfigured(source, identifier)


def _find_configured(settings: Settings, source: str) -> ModelSettings | None:
    for model in settings.models:
        if source in (model.source, model.name, *model.aliases):
            return model
    return None


def _unconfigured(source: str, identifier: str = "") -> ModelSettings:
    try:
        return ModelSettings(source=source, id=identifier)
    except ValidationError as error:
        (problem, *_) = error.errors()
        if not source:
            reason = "a model source is empty"
        elif problem["loc"]:
            reason = f"model source {source!r}: {problem['msg'].removeprefix('Value error, ')}"
        else:
            reason = f"no name can be taken from {source!r}: give ID=SOURCE"
        raise ModelError(reason) from None
