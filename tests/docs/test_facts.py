"""Tables that are written by hand list what the code has."""

import ast
import re
from pathlib import Path

import pytest

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.rpc.errors import status_code
from embedgrpc.server.settings.model_settings import ModelSettings
from tests import metrics_table, routes_table
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def section(page: str, title: str) -> str:
    """Return what stands under a heading of a page, up to the next one."""
    text = (DOCS / page).read_text("utf-8")
    _, found, rest = text.partition(f"\n{title}\n")
    assert found, f"{page} has no heading {title!r}"
    return re.split(r"\n(?:#+ |\*\*\w+(?:/\w+)?\*\*\n)", rest)[0]


def column(table: str, number: int) -> list[str]:
    """Return the code in a column of a table, counted from 0."""
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[number])]


def source_trees() -> list[ast.AST]:
    """Return the parsed sources of the engine and the server."""
    return [
        ast.parse(path.read_text("utf-8"))
        for part in ("engine", "server")
        for path in (ROOT / "src" / "embedgrpc" / part).rglob("*.py")
    ]


def constant(node: ast.AST | None) -> object:
    """Return the value of a constant; None of everything else."""
    return node.value if isinstance(node, ast.Constant) else None


def test_every_reason_has_a_row_with_its_status() -> None:
    """The page of errors lists the reasons of the contract and their statuses."""
    table = section("errors.md", "## Reasons")
    statuses = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE))
    assert set(statuses) == {reason.value for reason in Reason}
    for name, status in statuses.items():
        error = EngineError("message")
        error.reason = Reason(name)
        assert status_code(error).name == status


def test_every_label_has_a_row() -> None:
    """The page of errors lists the labels that the code gives, and no others."""
    shown = set(column(section("errors.md", "## Labels"), 1))
    literals: set[object] = set()
    labels: set[object] = set()
    for tree in source_trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant):
                literals.add(node.value)
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                labels |= {constant(value) for key, value in pairs if constant(key) == "label"}
            elif isinstance(node, ast.keyword) and node.arg == "label":
                labels.add(constant(node.value))
    # A label may also be handed on by a variable.
    labels.discard(None)
    assert labels
    assert labels <= shown
    assert shown <= literals


def test_the_page_of_metrics_is_current() -> None:
    """It lists every metric by every name, and the values of the label `fate`."""
    document = metrics_table.DOCUMENT.read_text("utf-8")
    assert document == metrics_table.render(document), "run: uv run python -m tests.metrics_table"
    values = re.search(r"`fate` is (.*?)\.", document, re.DOTALL)
    assert values
    assert re.findall(r"`(\w+)`", values[1]) == [one.value for one in SequenceOutcome]


def test_the_page_of_http_is_current() -> None:
    """It lists every route with its example, every header and every status."""
    document = routes_table.DOCUMENT.read_text("utf-8")
    assert document == routes_table.render(document), "run: uv run python -m tests.routes_table"


# The client is one folder of files, whose first lines say what each is for.
@pytest.mark.parametrize("package", sorted(set(FLOORS) - {"embedgrpc.client"}))
def test_every_room_has_a_row(package: str) -> None:
    """The page of the architecture lists the rooms from the top floor down."""
    title = package.removeprefix("embedgrpc.").replace(".", "/")
    assert column(section("architecture.md", f"**{title}**"), 0) == list(FLOORS[package])


def test_flags_in_the_prose_exist() -> None:
    """Each flag of a command that a page names is one that some parser knows."""
    known: set[str] = set()
    for folder in (ROOT / "src/embedgrpc/cli", ROOT / "clients/python/src/embedgrpc/client"):
        for path in folder.rglob("*.py"):
            known |= set(re.findall(r'"(--[a-z-]+)"', path.read_text("utf-8")))
    configuration = (DOCS / "configuration.md").read_text("utf-8")
    known |= set(re.findall(r"`(--[a-z0-9-]+)`", configuration))
    known |= {f"--model-{key.replace('_', '-')}" for key in ModelSettings.model_fields}
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        named = set(re.findall(r"`(--[a-z-]+)(?: [^`]*)?`", page.read_text("utf-8")))
        unknown = {flag for flag in named if flag.replace("--no-", "--") not in known}
        assert not unknown, page.name
