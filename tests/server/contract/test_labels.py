"""Reasons and labels: what the source sends is what the contract lists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedgrpc.engine import errors
from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.rpc.errors import status_code
from embedgrpc.v1 import common_pb2 as common

ROOT = Path(__file__).parents[3]
PROTO = (ROOT / "protos/embedgrpc/v1/common.proto").read_text("utf-8")
CLASSES = {
    name: one.reason
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, EngineError)
}


def _comments(prefix: str) -> dict[str, str]:
    """Return the comment of each value of an enum, by its name without the prefix."""
    found = re.findall(rf"((?:  //.*\n)+)  {prefix}(\w+) = \d+;", PROTO)
    return {name: re.sub(r"\n?  // ?", " ", comment).strip() for comment, name in found}


def _sent() -> Iterator[tuple[str, str, str]]:
    """Yield each label in the source, the class of its error if it is known, and the file."""
    for path in sorted((ROOT / "src/embedgrpc").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        owners = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                for keyword in node.keywords:
                    if keyword.arg == "metadata":
                        owners[keyword.value] = name
        for node in ast.walk(tree):
            for value, owner in _labels(node, owners):
                for text in ast.walk(value):
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        yield text.value, owner, path.name


def _labels(node: ast.AST, owners: dict[ast.expr, str]) -> Iterator[tuple[ast.expr, str]]:
    match node:
        case ast.Dict():
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "label":
                    yield value, owners.get(node, "")
        case ast.keyword(arg="label"):
            yield node.value, ""
        case ast.Assign(targets=[ast.Name(id="label")], value=ast.IfExp(body=yes, orelse=no)):
            yield yes, ""
            yield no, ""
        case ast.Call(func=ast.Attribute(attr="_refuse"), args=[_, _, label, *_]):
            yield label, "OverloadedError"


def test_every_label_is_sent_and_listed() -> None:
    """The values of ErrorLabel are exactly those that some line of the source sends."""
    sent = {label for label, _, _ in _sent()}
    listed = {
        name.removeprefix("ERROR_LABEL_") for name in common.ErrorLabel.DESCRIPTOR.values_by_name
    }
    assert sent == listed - {"UNSPECIFIED"}


def test_a_label_comes_with_the_reason_that_the_contract_says() -> None:
    """The comment of a label begins with its reasons."""
    comments = _comments("ERROR_LABEL_")
    checked = 0
    for label, owner, file in _sent():
        if owner in CLASSES:
            reasons = comments[label].split(":")[0]
            assert CLASSES[owner].value in re.split(r" or |, ", reasons), (label, file)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_has_the_status_that_the_contract_says(reason: Reason) -> None:
    """The comment of each reason names its status."""
    error = EngineError("message")
    error.reason = reason
    match = re.search(r"Status: (\w+)\.", _comments("ERROR_REASON_")[reason.value])
    assert match is not None
    assert match[1] == status_code(error).name


def test_every_reason_is_sent_or_reserved() -> None:
    """Reasons without an error class are those that the contract reserves."""
    listed = {
        name.removeprefix("ERROR_REASON_") for name in common.ErrorReason.DESCRIPTOR.values_by_name
    }
    assert {one.value for one in Reason} == listed - {"UNSPECIFIED"}
    comments = _comments("ERROR_REASON_")
    reserved = {name for name, text in comments.items() if text.startswith("Reserved:")}
    assert {one.value for one in CLASSES.values()} == listed - {"UNSPECIFIED"} - reserved
