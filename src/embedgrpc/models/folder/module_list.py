"""Lists the modules that `modules.json` names."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject, read_json
from embedgrpc.models.sources.config_files import MODULES_NAME

_LIBRARY = "sentence_transformers"
# PyLate's own class computes the same.
_PYLATE_DENSE = "pylate.models.Dense.Dense"
# Real models have up to six modules.
_MODULES_MAX = 64


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """A module that a file lists.

    Attributes:
        type: Its class, with the path.
        folder: Its folder, relative to the model's.
        type_place: The file and key of its type, for messages.
        folder_place: The file and key of its folder, for messages.
    """

    type: str
    folder: str
    type_place: str
    folder_place: str

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.type.rpartition(".")[2]

    @property
    def has_own_code(self) -> bool:
        """Whether its class is not of the library."""
        package, dot, _ = self.type.partition(".")
        return bool(dot) and package != _LIBRARY and self.type != _PYLATE_DENSE


def list_modules(folder: Path) -> tuple[ModuleEntry, ...]:
    """Return the modules that `modules.json` lists.

    Raises:
        ModelError: The file is wrong.
    """
    path = folder / MODULES_NAME
    return tuple(
        ModuleEntry(
            type=module.text("type", default=""),
            folder=module.text("path", default=""),
            type_place=f"{path}: [{index}].type",
            folder_place=f"{path}: [{index}].path",
        )
        for index, module in enumerate(read_module_list(folder))
    )


def read_module_list(folder: Path) -> list[JsonObject]:
    """Return the entries of `modules.json`.

    Raises:
        ModelError: The file cannot be read, or is no list of objects.
    """
    path = folder / MODULES_NAME
    entries = read_json(path, folder)
    if not isinstance(entries, list) or not entries:
        raise ModelError(f"{path} must hold a list of modules")
    if len(entries) > _MODULES_MAX:
        raise ModelError(
            f"{path} has {len(entries)} modules, more than the limit of {_MODULES_MAX}"
        )
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ModelError(f"{path}: [{index}] must be an object")
    return [JsonObject(path=path, values=entry) for entry in entries]
