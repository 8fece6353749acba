"""Finds the settings of a model that a command names."""

from embedgrpc.server.model_settings import ModelSettings
from embedgrpc.server.settings import Settings


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
