"""Finds the routes of a model: the modules that a query passes, and those of a document.

Source: `Router` of sentence-transformers 6.2, which older releases call `Asym`.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import find_member
from embedgrpc.models.folder.module_list import ModuleEntry, list_modules
from embedgrpc.models.kinds import TextRole
from embedgrpc.models.sources.config_files import (
    MODULES_NAME,
    ROUTED_MODULES_MAX,
    ROUTER_TYPES,
    ROUTERS_DEPTH_MAX,
    join_places,
    read_router,
)

_TEXT = "text"
# These modules do not say that they read texts, so a router behind them cannot choose by it.
_TABLES = ("StaticEmbedding", "SparseStaticEmbedding")
# A route that one of these chooses is not for texts alone.
_OTHER_MODALITIES = frozenset({"image", "audio", "video", "message"})
_KEY_CHARACTERS_MAX = 256
# The roles in the order in which the routes are listed; None for a text without one.
_ROLES = (None, TextRole.QUERY, TextRole.DOCUMENT)

# What a router chooses by: a task and a modality; None for any.
_Key = tuple[str | None, str | tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Route:
    """The modules that some texts pass.

    Attributes:
        name: The name that the routers give it; with several routers, or with one in a route of
            another, their names joined.
        entries: The modules, in order.
        routers: The files of the routers that are passed.
    """

    name: str
    entries: tuple[ModuleEntry, ...]
    routers: tuple[JsonObject, ...]

    @property
    def has_encoder(self) -> bool:
        """Whether the first module is an encoder, and not a table."""
        return bool(self.entries) and self.entries[0].name not in _TABLES


@dataclass(frozen=True, slots=True)
class Routing:
    """The routes of a model.

    Attributes:
        routes: By name; first the one of texts without a role, if there is one.
        by_role: The name of the route that the texts of a role pass, None for no role. A role that
            is missing has no route.
        skipped: The names of the routes that no text passes.
    """

    routes: Mapping[str, Route]
    by_role: Mapping[TextRole | None, str]
    skipped: tuple[str, ...]


def read_routing(folder: Path) -> Routing | None:
    """Return the routes of a model; None if it has no router.

    Raises:
        ModelError: A file is wrong, or a text could never reach a route.
    """
    if not (folder / MODULES_NAME).exists():
        return None
    entries = list_modules(folder)
    follows_table = entries[0].name in _TABLES
    reader = _RouterReader(folder)
    steps = tuple(
        reader.read(entry, modality=None if index and follows_table else _TEXT)
        if entry.name in ROUTER_TYPES
        else entry
        for index, entry in enumerate(entries)
    )
    if not any(isinstance(step, _Router) for step in steps):
        return None
    passes = {role: _Passed.of(steps, role) for role in _ROLES}
    routes: dict[str, Route] = {}
    by_role: dict[TextRole | None, str] = {}
    for role, passed in passes.items():
        if passed.refused:
            continue
        known = [name for name, route in routes.items() if route.entries == tuple(passed.entries)]
        name = known[0] if known else _unused("/".join(passed.names), routes)
        configs = tuple(router.config for router in passed.routers)
        routes.setdefault(name, Route(name, tuple(passed.entries), configs))
        by_role[role] = name
    if not routes:
        raise ModelError(
            f"{passes[None].routers[0].config.path}: no route is for texts: "
            "parameters.default_route or parameters.route_mappings must name one"
        )
    return Routing(routes, by_role, tuple(dict.fromkeys(_skipped(passes))))


def _unused(name: str, names: Mapping[str, object]) -> str:
    """Return a name that is not in use, as joined names may be equal."""
    while name in names:
        name += "+"
    return name


@dataclass(frozen=True, slots=True)
class _Router:
    """One router.

    Attributes:
        config: Its file.
        structure: The modules of each route, of which some may be routers.
        default: The route of texts that no other rule covers; None if there is none.
        mappings: The route by task and modality.
        modality: What it knows of a text; None behind a table.
    """

    config: JsonObject
    structure: Mapping[str, "tuple[_Step, ...]"]
    default: str | None
    mappings: Mapping[_Key, str]
    modality: str | None

    def choose(self, role: TextRole | None) -> str | None:
        """Return the route of the texts of a role; None if the reference refuses them."""
        task = None if role is None else role.value
        keys: tuple[_Key, ...] = (
            (task, self.modality),
            (task, None),
            (None, self.modality),
            (None, None),
        )
        for key in keys:
            if key in self.mappings:
                return self.mappings[key]
        for name in (task, self.modality):
            if name is not None and name in self.structure:
                return name
        return None if task is not None else self.default

    def skipped(self, reached: Iterable[TextRole | None]) -> list[str]:
        """Return the routes that no text passes.

        Args:
            reached: The roles of the texts that reach the router.

        Raises:
            ModelError: One is for texts whose task no request can name.
        """
        chosen = {self.choose(role) for role in reached}
        skipped = [name for name in self.structure if name not in chosen]
        # In a route of another router, some roles never arrive, here as in the reference.
        named = {self.choose(role) for role in _ROLES}
        for name in skipped:
            keys = [key for key, route in self.mappings.items() if route == name]
            elsewhere = name in _OTHER_MODALITIES or (
                bool(keys) and all(modality not in (None, _TEXT) for _, modality in keys)
            )
            if not elsewhere and name not in named:
                raise ModelError(
                    f"{self.config.path}: no text reaches the route {_shown(name)}, as a request "
                    "says that texts are queries, documents or neither: choose it in "
                    "parameters.route_mappings, as \"('document', None)\" does, or remove it"
                )
        return skipped


# A module, or a router that chooses among several.
_Step: TypeAlias = ModuleEntry | _Router


@dataclass(slots=True)
class _Passed:
    """What the texts of a role pass.

    Attributes:
        entries: The modules, in order.
        routers: The routers, in order.
        names: The routes that these choose.
        refused: Whether one of them has no route for the role.
    """

    entries: list[ModuleEntry] = field(default_factory=list)
    routers: list[_Router] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    refused: bool = False

    @classmethod
    def of(cls, steps: Iterable[_Step], role: TextRole | None) -> "_Passed":
        """Follow the texts of a role through modules.

        Raises:
            ModelError: They would pass too many.
        """
        passed = cls()
        passed._add(steps, role)
        return passed

    def _add(self, steps: Iterable[_Step], role: TextRole | None) -> None:
        for step in steps:
            if len(self.entries) + len(self.routers) == ROUTED_MODULES_MAX:
                # Routes that name routers several times, in one another, would multiply.
                place = step.config.path if isinstance(step, _Router) else step.type_place
                raise ModelError(
                    f"{place}: a text would pass more than {ROUTED_MODULES_MAX} modules and routers"
                )
            if isinstance(step, ModuleEntry):
                self.entries.append(step)
                continue
            self.routers.append(step)
            name = step.choose(role)
            if name is None:
                self.refused = True
                continue
            self.names.append(name)
            # A router hands the task and the modality on to those in its routes.
            self._add(step.structure[name], role)


def _skipped(passes: Mapping[TextRole | None, _Passed]) -> Iterator[str]:
    """Yield the names of the routes that no text passes, of every router that texts reach."""
    reached: dict[int, tuple[_Router, list[TextRole | None]]] = {}
    for role, passed in passes.items():
        for router in passed.routers:
            reached.setdefault(id(router), (router, []))[1].append(role)
    for router, roles in reached.values():
        yield from router.skipped(roles)


@dataclass(slots=True)
class _RouterReader:
    """Reads routers, of which one may be in a route of another.

    Attributes:
        root: The model's folder.
        count: The routers that were read.
    """

    root: Path
    count: int = 0

    def read(self, entry: ModuleEntry, *, modality: str | None, depth: int = 1) -> _Router:
        """Read a router, and those in its routes.

        Args:
            entry: Where it is.
            modality: What it knows of a text.
            depth: In how many routers it is, with itself.
        """
        self.count += 1
        if depth > ROUTERS_DEPTH_MAX or self.count > ROUTED_MODULES_MAX:
            raise ModelError(
                f"{entry.type_place}: there are more than {ROUTERS_DEPTH_MAX} routers in one"
                f" another, or more than {ROUTED_MODULES_MAX} in all"
            )
        folder = find_member(self.root, self.root, entry.folder, named_by=entry.folder_place)
        config = read_router(folder, self.root)
        parameters = JsonObject(config.path, config.table("parameters"))
        modules = _read_structure(self.root, entry, config)
        default = parameters.text("default_route", default="") or None
        if default is not None and default not in modules:
            raise parameters.wrong("default_route", f"one of {_listed(modules)}")
        if default is None and parameters.flag("allow_empty_key", default=True):
            default = next(iter(modules))
        mappings = _read_mappings(parameters, modules)
        inner = {
            one: self.read(one, modality=modality, depth=depth + 1)
            for one in dict.fromkeys(one for route in modules.values() for one in route)
            if one.name in ROUTER_TYPES
        }
        structure = {
            name: tuple(inner.get(one, one) for one in route) for name, route in modules.items()
        }
        return _Router(config, structure, default, mappings, modality)


def _read_structure(
    root: Path, entry: ModuleEntry, config: JsonObject
) -> Mapping[str, tuple[ModuleEntry, ...]]:
    types, structure = config.table("types"), config.table("structure")
    if not structure:
        raise ModelError(f"{config.path} must hold the routes of {entry.name}, in structure")
    if max(len(types), len(structure)) > ROUTED_MODULES_MAX:
        raise ModelError(
            f"{config.path} has {max(len(types), len(structure))} modules or routes, more than "
            f"the limit of {ROUTED_MODULES_MAX}"
        )
    modules: dict[str, ModuleEntry] = {}
    for name, kind in types.items():
        place = f"{config.path}: types.{_shown(name)}"
        if not isinstance(kind, str):
            raise ModelError(f"{place} must be the name of a class")
        find_member(root, root, join_places(entry.folder, name), named_by=place)
        modules[name] = ModuleEntry(kind, join_places(entry.folder, name), place, place)
    return {name: _read_route(config, name, ids, modules) for name, ids in structure.items()}


def _read_route(
    config: JsonObject, route: str, names: object, modules: Mapping[str, ModuleEntry]
) -> tuple[ModuleEntry, ...]:
    place = f"{config.path}: structure.{_shown(route)}"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{place} must be a list of names of modules")
    if len(names) > ROUTED_MODULES_MAX:
        raise ModelError(f"{place} has {len(names)} modules; the limit is {ROUTED_MODULES_MAX}")
    for name in names:
        if name not in modules:
            raise ModelError(f"{place} names the module {_shown(name)}, which types does not have")
    return tuple(modules[name] for name in names)


def _read_mappings(
    parameters: JsonObject, structure: Mapping[str, Sequence[ModuleEntry]]
) -> Mapping[_Key, str]:
    mappings: dict[_Key, str] = {}
    for key, route in parameters.table("route_mappings").items():
        parsed = _parse_key(key)
        if parsed is None:
            raise parameters.wrong(
                "route_mappings", "keyed by a task and a modality, such as ('query', 'text')"
            )
        if not isinstance(route, str) or route not in structure:
            raise parameters.wrong("route_mappings", f"to some of {_listed(structure)}")
        mappings[parsed] = route
    return mappings


def _parse_key(key: str) -> _Key | None:
    """Return the task and the modality that a Python tuple names; None if it is wrong."""
    if len(key) > _KEY_CHARACTERS_MAX:
        return None
    try:
        value = ast.literal_eval(key)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, tuple) or len(value) != 2:  # noqa: PLR2004 - a pair
        return None
    task, modality = value
    if isinstance(modality, tuple) and all(isinstance(one, str) for one in modality):
        modality = tuple(sorted(modality))
    elif modality is not None and not isinstance(modality, str):
        return None
    if task is not None and not isinstance(task, str):
        return None
    return task, modality


def _shown(name: str) -> str:
    return repr(name[:64])


def _listed(names: Mapping[str, object]) -> str:
    shown = [_shown(name) for name in list(names)[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")  # noqa: PLR2004 - see above
