"""Finds the routes of a model: the modules that a query passes, and those of a document.

Source: `Router` of sentence-transformers 6.2, which older releases call `Asym`.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import find_member
from embedgrpc.models.folder.module_list import ModuleEntry, list_modules
from embedgrpc.models.kinds import TextRole
from embedgrpc.models.sources.config_files import (
    MODULES_NAME,
    ROUTED_MODULES_MAX,
    ROUTER_TYPES,
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
        name: The name that the routers give it; with several routers, their names joined.
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
    routers = {
        index: _Router.read(folder, entry, follows_table=index > 0 and entries[0].name in _TABLES)
        for index, entry in enumerate(entries)
        if entry.name in ROUTER_TYPES
    }
    if not routers:
        return None
    routes: dict[str, Route] = {}
    by_role: dict[TextRole | None, str] = {}
    for role in _ROLES:
        chosen = {index: router.choose(role) for index, router in routers.items()}
        names = [name for name in chosen.values() if name is not None]
        if len(names) < len(chosen):
            continue
        passed = tuple(
            inner
            for index, entry in enumerate(entries)
            for inner in (
                routers[index].structure[chosen[index] or ""] if index in routers else (entry,)
            )
        )
        known = next((name for name, route in routes.items() if route.entries == passed), "")
        name = known or "/".join(names)
        configs = tuple(router.config for router in routers.values())
        routes.setdefault(name, Route(name, passed, configs))
        by_role[role] = name
    if not routes:
        raise ModelError(
            f"{next(iter(routers.values())).config.path}: no route is for texts: "
            "parameters.default_route or parameters.route_mappings must name one"
        )
    skipped = [name for router in routers.values() for name in router.skipped()]
    return Routing(routes, by_role, tuple(dict.fromkeys(skipped)))


@dataclass(frozen=True, slots=True)
class _Router:
    """One router.

    Attributes:
        config: Its file.
        structure: The modules of each route.
        default: The route of texts that no other rule covers; None if there is none.
        mappings: The route by task and modality.
        modality: What it knows of a text; None behind a table.
    """

    config: JsonObject
    structure: Mapping[str, tuple[ModuleEntry, ...]]
    default: str | None
    mappings: Mapping[_Key, str]
    modality: str | None

    @classmethod
    def read(cls, root: Path, entry: ModuleEntry, *, follows_table: bool) -> "_Router":
        folder = find_member(root, root, entry.folder, named_by=entry.folder_place)
        config = read_router(folder, root)
        structure = _read_structure(root, entry, config)
        parameters = JsonObject(config.path, config.table("parameters"))
        default = parameters.text("default_route", default="") or None
        if default is not None and default not in structure:
            raise parameters.wrong("default_route", f"one of {_listed(structure)}")
        if default is None and parameters.flag("allow_empty_key", default=True):
            default = next(iter(structure))
        mappings = _read_mappings(parameters, structure)
        return cls(config, structure, default, mappings, None if follows_table else _TEXT)

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

    def skipped(self) -> list[str]:
        """Return the routes that no text passes.

        Raises:
            ModelError: One is for texts whose task no request can name.
        """
        chosen = {self.choose(role) for role in _ROLES}
        skipped = [name for name in self.structure if name not in chosen]
        for name in skipped:
            keys = [key for key, route in self.mappings.items() if route == name]
            elsewhere = name in _OTHER_MODALITIES or (
                bool(keys) and all(modality not in (None, _TEXT) for _, modality in keys)
            )
            if not elsewhere:
                raise ModelError(
                    f"{self.config.path}: no text reaches the route {_shown(name)}, as a request "
                    "says that texts are queries, documents or neither: choose it in "
                    "parameters.route_mappings, as \"('document', None)\" does, or remove it"
                )
        return skipped


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
        if modules[name].name in ROUTER_TYPES:
            raise ModelError(f"{place}: a router in a route of another one is not supported")
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
