"""Finds the settings of a model that a command names."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.configuration import explain
from embedgrpc.server.settings.model_settings import ModelSettings, split_source
from embedgrpc.server.settings.settings import Settings


def find_model(settings: Settings, text: str, keys: Mapping[str, Any]) -> ModelSettings:
    """Return the settings of a model, configured or not.

    Args:
        settings: The settings with the configured models.
        text: [ID=]SOURCE. A configured model is found by its source, id or alias.
        keys: Keys of the model that override the configuration.

    Raises:
        ModelError: The source has no valid form, a key is wrong, or no id is given and none can be
            derived from the source.
    """
    model_id, source = "", text
    configured = _find_configured(settings, text)
    if configured is None:
        model_id, source = split_source(text)
        configured = _find_configured(settings, source)
    given = configured.model_dump(exclude_defaults=True) if configured else {"source": source}
    try:
        return ModelSettings(**given | ({"id": model_id} if model_id else {}) | dict(keys))
    except ValidationError as error:
        (name, problem), *_ = explain(error, ModelSettings)
        raise ModelError(f"model {text!r}: {f'{name}: ' if name else ''}{problem}") from None


def _find_configured(settings: Settings, source: str) -> ModelSettings | None:
    for model in settings.models:
        if source in (model.source, model.name, *model.aliases):
            return model
    return None
