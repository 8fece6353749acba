"""Has the files of a model read by another process first, as the server does."""

from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.validation.child_process import ChildGroup
from embedgrpc.models.validation.validation import Validation, load_validated
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings


def prepare_validated(
    files: ModelFiles, model: ModelSettings, settings: Settings
) -> tuple[ModelProperties, Graph]:
    """Builds the graph of a model, or finds it in the cache.

    Args:
        files: The model.
        model: Its settings.
        settings: Where the cache is, and the limits of the process.

    Returns:
        What the model is, and its graph.

    Raises:
        ModelError: The files cannot be used, or take too long or too much memory to read.
    """
    return load_validated(
        _validation(files, model, settings, build=True),
        ChildGroup(),
        lambda _: (
            described := read(files, model.overrides),
            prepare(files, described, cache_dir=settings.cache_dir, may_build=False),
        ),
    )


def check_validated(files: ModelFiles, model: ModelSettings, settings: Settings) -> None:
    """Has the files read that say what a model is, without its weights.

    Args:
        files: The model.
        model: Its settings.
        settings: Where the cache is, and the limits of the process.

    Raises:
        ModelError: The files cannot be used, or take too long or too much memory to read.
    """
    load_validated(_validation(files, model, settings, build=False), ChildGroup(), lambda _: None)


def _validation(
    files: ModelFiles, model: ModelSettings, settings: Settings, *, build: bool
) -> Validation:
    return Validation(
        files=files,
        overrides=model.overrides,
        escape_special_tokens=model.escape_special_tokens,
        build=build,
        cache_dir=settings.cache_dir,
        limits=settings.validation_limits,
    )
