"""Finds the small mistakes that could be made in a module."""

import difflib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names

from tests.mutation.suites import ROOT

# One mistake of each kind. All that the library has would try a dozen at each place, most of which
# any test notices: they would cost time and flatter the figure. `|` is left alone, for it stands in
# types as a rule.
_OPERATORS = (
    *("Add_Sub", "Sub_Add", "Mul_FloorDiv", "Div_Mul", "FloorDiv_Mul", "Mod_Mul"),
    *("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
    *("AddNot", "Delete_Not", "Delete_USub", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "NumberReplacer"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
)
_PREFIXES = (
    "core/",
    "core/ReplaceBinaryOperator_",
    "core/ReplaceComparisonOperator_",
    "core/ReplaceUnaryOperator_",
)


class _ForgetStatement(Operator):  # type: ignore[misc]  # untyped library
    """Leaves a call, or an assignment to an attribute or an element, out."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Tell where such a statement stands."""
        if node.type != "simple_stmt":
            return
        statement, first = node.children[0], node.get_first_leaf()
        is_call = statement.type in ("atom_expr", "power") and first.type == "name"
        # What is logged for people is no behaviour that every test should be bound to.
        is_logged = first.type == "name" and first.value == "_logger"
        is_stored = statement.type == "expr_stmt" and statement.children[0].type in (
            "atom_expr",
            "power",
        )
        if (is_call and not is_logged) or is_stored:
            yield (node.start_pos, node.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        """Put `pass` in its place."""
        del index
        statement = get_ast("pass\n").children[0]
        statement.get_first_leaf().prefix = node.get_first_leaf().prefix
        return statement

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Show what it does."""
        return (Example("f()\n", "pass\n"), Example("a.b = 1\n", "pass\n"))


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with a mistake.

    Attributes:
        module: The module's file.
        kind: What kind of mistake it is.
        code: The module's code with the mistake.
        line: Where the mistake is.
        diff: What was changed, for people.
    """

    module: Path
    kind: str
    code: str
    line: int
    diff: str

    @property
    def where(self) -> str:
        """Name the place and the kind."""
        return f"{self.module.relative_to(ROOT)}:{self.line} {self.kind}"


def find_mutants(module: Path) -> list[Mutant]:
    """Make all mutants of a module."""
    return list(_mutants(module, find_places(module)))


def sample_mutants(module: Path, count: int, chooser: random.Random) -> list[Mutant]:
    """Make some mutants of a module, by chance."""
    places = find_places(module)
    chooser.shuffle(places)
    return list(islice(_mutants(module, places), count))


def find_places(module: Path) -> list[tuple[str, int]]:
    """Return what may be done to a module: a kind of mistake, and which of its places."""
    nodes = list(_nodes(get_ast(module.read_text("utf-8"))))
    return [
        (kind, occurrence)
        for kind, operator in _operators().items()
        for occurrence in range(sum(_count(operator, node) for node in nodes))
    ]


def _mutants(module: Path, places: Iterable[tuple[str, int]]) -> Iterator[Mutant]:
    """Make mutants that still are Python."""
    source = module.read_text("utf-8")
    lines = source.splitlines()
    for kind, occurrence in places:
        code = mutate_code(source, _operators()[kind], occurrence)
        if code is None or code == source or not _is_python(code):
            continue
        mutant = _mutant(module, kind, source, code)
        # Slots and frozen fields are there for people and for memory.
        if not lines[mutant.line - 1].startswith("@dataclass"):
            yield mutant


@cache
def _operators() -> Mapping[str, Operator]:
    known = set(operator_names())
    operators = {"ForgetStatement": _ForgetStatement()}
    for name in _OPERATORS:
        full = next(prefix + name for prefix in _PREFIXES if prefix + name in known)
        operators[name] = get_operator(full)()
    return operators


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def _count(operator: Operator, node: Any) -> int:
    return sum(1 for _ in operator.mutation_positions(node))


def _is_python(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _mutant(module: Path, kind: str, source: str, code: str) -> Mutant:
    before, after = source.splitlines(), code.splitlines()
    pairs = enumerate(zip(before, after, strict=False), start=1)
    line = next((number for number, (one, other) in pairs if one != other), len(after))
    changed = difflib.unified_diff(before, after, lineterm="", n=1)
    return Mutant(module, kind, code, line, "\n".join(list(changed)[2:]))
