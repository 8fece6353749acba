"""Which tests should notice a mistake in which module."""

import ast
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_SERVER = ROOT / "src" / "embedgrpc"
_CLIENT = ROOT / "clients" / "python" / "src" / "embedgrpc"
# By where a module lies; the first that fits. Their order is that of the table.
_TESTS: Mapping[Path, str] = {
    _SERVER / "engine": "tests/engine",
    _SERVER / "server": "tests/server",
    _SERVER / "models": "tests/models",
    _SERVER / "backends" / "triton": "tests/backends/triton",
    _SERVER / "backends": "tests/backends",
    _SERVER / "machine": "tests/machine",
    _CLIENT / "client": "tests/client",
}


def find_modules(paths: Iterable[Path]) -> list[Path]:
    """Return the modules below some paths that have tests of their own; all for no paths."""
    wanted = list(paths) or list(_TESTS)
    found = {
        module
        for path in wanted
        for module in ([path] if path.is_file() else path.rglob("*.py"))
        if _folder(module) is not None
    }
    return sorted(found)


def find_tests(module: Path) -> list[Path]:
    """Return the test files that should notice a mistake in a module, the likeliest first.

    They are those of its folder, and those beside the folders that import it by name. First come
    those that import it, then those that import what imports it, and so on.
    """
    folder = _folder(module)
    if folder is None:
        raise LookupError(f"{module} has no tests of its own")
    distances = _distances(_name(module))
    files = sorted((ROOT / folder).rglob("test_*.py"))
    near = [(distances.get(file, len(distances)), file) for file in files]
    near += [
        (0, file) for file in sorted((ROOT / "tests").glob("test_*.py")) if distances.get(file) == 0
    ]
    return [file for _, file in sorted(near)]


def _folder(module: Path) -> str | None:
    return next((tests for folder, tests in _TESTS.items() if module.is_relative_to(folder)), None)


def _name(path: Path) -> str:
    for source in (_SERVER.parent, _CLIENT.parent, ROOT):
        if path.is_relative_to(source):
            return ".".join(path.relative_to(source).with_suffix("").parts)
    raise LookupError(f"{path} lies outside of the repository")


def _distances(name: str) -> Mapping[Path, int]:
    """Tell how many imports lie between each test file and a module: 0 for its importers."""
    files = _files()
    importers: dict[str, list[str]] = {}
    for importer, path in files.items():
        for imported in _imports(path):
            importers.setdefault(imported, []).append(importer)
    distances: dict[str, int] = {}
    queue = deque([(name, -1)])
    while queue:
        current, distance = queue.popleft()
        for importer in importers.get(current, ()):
            if importer not in distances:
                distances[importer] = distance + 1
                queue.append((importer, distance + 1))
    return {
        files[one]: distance
        for one, distance in distances.items()
        if files[one].name.startswith("test_")
    }


@cache
def _files() -> Mapping[str, Path]:
    folders = (_SERVER, _CLIENT, ROOT / "tests", ROOT / "benchmarks")
    return {_name(path): path for folder in folders for path in folder.rglob("*.py")}


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_imported_names(ast.parse(path.read_text("utf-8"))))


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # What is imported may be a module itself.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
