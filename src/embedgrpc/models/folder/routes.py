"""Reads the properties of every route of a model, and what they have in common.

A model without a router has one route, which all texts pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.folder.routing import Route, Routing, read_routing
from embedgrpc.models.kinds import Kind, TextRole, Truncation
from embedgrpc.models.sources.source import ModelFiles


@dataclass(frozen=True, slots=True)
class RoutedProperties:
    """The properties of a model's routes.

    Attributes:
        by_route: The properties of each route by its name; the name is empty for a model without a
            router. The first is that of texts without a role, if there is one.
        by_role: The name of the route that the texts of a role pass, None for no role. A role that
            is missing has no route.
        skipped: The names of the routes that no text passes, such as one for images.
    """

    by_route: Mapping[str, ModelProperties]
    by_role: Mapping[TextRole | None, str]
    skipped: tuple[str, ...] = ()

    @property
    def has_router(self) -> bool:
        """Whether the role of a text chooses the route that it passes."""
        return "" not in self.by_route

    @property
    def first(self) -> ModelProperties:
        """The properties of the first route."""
        return next(iter(self.by_route.values()))

    @property
    def common(self) -> ModelProperties:
        """The properties of the model as a whole: limits are the largest of any route."""
        routes = tuple(self.by_route.values())
        if len(routes) == 1:
            return routes[0]
        truncations = {route.truncation for route in routes} - {Truncation.NONE}
        return replace(
            routes[0],
            max_tokens=max(route.max_tokens for route in routes),
            sparse_dimensions=max(route.sparse_dimensions for route in routes),
            normalize=all(route.normalize for route in routes),
            truncation=next(iter(truncations), Truncation.NONE),
        )


def read_routes(files: ModelFiles, overrides: ModelOverrides | None = None) -> RoutedProperties:
    """Read the properties of a model's routes.

    Args:
        files: The model's folder.
        overrides: The configuration, which wins over the files.

    Raises:
        ModelError: A file is missing or wrong, something is not supported, or the routes return
            vectors that cannot be compared.
    """
    overrides = overrides or ModelOverrides()
    routing = read_routing(files.folder)
    if routing is None:
        return RoutedProperties({"": read(files, overrides)}, {None: ""})
    read_all = {
        name: read(*_fitting(files, overrides, route, routing), route=route)
        for name, route in routing.routes.items()
    }
    for name, found in read_all.items():
        _check(files, name, found)
    (first, one), *others = read_all.items()
    for name, other in others:
        _compare(files, first, one, name, other)
    return RoutedProperties(read_all, routing.by_role, routing.skipped)


def _fitting(
    files: ModelFiles, overrides: ModelOverrides, route: Route, routing: Routing
) -> tuple[ModelFiles, ModelOverrides]:
    """Return the files and the settings for one route.

    An adapter, and settings for encoders, are for the routes that have one.
    """
    if route.has_encoder or not any(other.has_encoder for other in routing.routes.values()):
        return files, overrides
    plain = ModelOverrides()
    return replace(files, adapter="", adapter_source=""), replace(
        overrides,
        pooling=plain.pooling,
        file=plain.file,
        output=plain.output,
        task_id=plain.task_id,
        adapter=plain.adapter,
        weight_type=plain.weight_type,
    )


def _check(files: ModelFiles, name: str, route: ModelProperties) -> None:
    if route.kind is not Kind.EMBEDDING or route.late_interaction is not None:
        found = "a model of late interaction" if route.late_interaction else f"a {route.kind}"
        raise ModelError(
            f"{files.folder}: the route {name[:64]!r} is {found}; only routes with one vector a "
            "text are supported"
        )
    if route.tasks:
        raise ModelError(
            f"{files.folder}: the route {name[:64]!r} computes several tasks, which is not "
            "supported in a route: set task_id for this model in the configuration"
        )


def _compare(
    files: ModelFiles, name: str, one: ModelProperties, other_name: str, other: ModelProperties
) -> None:
    """Refuse routes whose vectors cannot be compared, or whose texts are cut at different ends."""
    for what in ("representations", "dimensions", "truncation"):
        found = [getattr(route, what) for route in (one, other)]
        if found[0] == found[1] or (what == "truncation" and Truncation.NONE in found):
            continue
        shown = [", ".join(value) if isinstance(value, tuple) else str(value) for value in found]
        raise ModelError(
            f"{files.folder}: {what} of the route {name[:64]!r} is {shown[0]}, and of "
            f"{other_name[:64]!r} {shown[1]}: save each route as a model of its own, and serve both"
        )
