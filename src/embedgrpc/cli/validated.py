"""Reads a model's files in a child process first, as the server does."""

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
    """Return a model's properties and its graph, which is built unless it is cached.

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
    """Let a child process read the files that describe a model, but not its weights.

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
