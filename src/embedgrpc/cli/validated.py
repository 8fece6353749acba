"""Reads a model's files in a child process first, as the server does."""

from collections.abc import Mapping

from embedgrpc.models.folder.routes import RoutedProperties, read_routes
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.validation.child_process import ChildGroup
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings


def prepare_validated(
    files: ModelFiles, model: ModelSettings, settings: Settings
) -> tuple[RoutedProperties, Mapping[str, Graph]]:
    """Return a model's properties, and the graph of each route, built unless it is cached.

    Raises:
        ModelError: The files cannot be used, or take too long or too much memory to read.
    """

    def use(_: FileDigests) -> tuple[RoutedProperties, Mapping[str, Graph]]:
        found = read_routes(files, model.overrides)
        graphs = {
            name: prepare(files, route, cache_dir=settings.cache_dir, may_build=False)
            for name, route in found.by_route.items()
        }
        return found, graphs

    return load_validated(_validation(files, model, settings, build=True), ChildGroup(), use)


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
