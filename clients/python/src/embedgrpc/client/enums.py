"""The enums of the contract, as the short lower-case names that callers write."""

from typing import TYPE_CHECKING, Literal, overload

from embedgrpc.client.suggestions import quote, suggest

if TYPE_CHECKING:  # the command reads these names before it loads protobuf
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

Encoding = Literal["float32", "float16", "bfloat16", "int8", "ubinary"]
InputType = Literal["query", "document", "classification", "clustering", "similarity"]
LabelOrder = Literal["score", "model"]
Priority = Literal["interactive", "bulk"]
Representation = Literal["dense", "sparse", "multi_vector"]
ResultOrder = Literal["input", "completion"]
ScoreFunction = Literal["raw", "softmax", "sigmoid"]
ScoreScale = Literal["raw", "sigmoid"]
Task = Literal["embed", "rerank", "classify"]
Truncation = Literal["none", "end", "start"]


@overload
def enum_value(enum: "EnumTypeWrapper", name: str) -> str: ...
@overload
def enum_value(enum: "EnumTypeWrapper", name: str | None) -> str | None: ...
def enum_value(enum: "EnumTypeWrapper", name: str | None) -> str | None:
    """Return the full name of a value, as messages take it; None for None.

    Args:
        enum: An enum of the contract, such as `embedding_service_pb2.VectorEncoding`.
        name: The short name, such as "float32".

    Raises:
        ValueError: The enum has no such value; the message lists its values.
    """
    if name is None:
        return None
    full_name = _prefix(enum) + name.upper()
    if full_name not in enum.keys()[1:]:
        names = [enum_name(enum, number) for number in enum.values()[1:]]
        raise ValueError(
            f"{enum.DESCRIPTOR.name} has no value {quote(name)}{suggest(name, names)}"
            f" (choose from {', '.join(names)})"
        )
    return full_name


def enum_name(enum: "EnumTypeWrapper", number: int) -> str:
    """Return the short name of a value.

    Args:
        enum: An enum of the contract.
        number: The number that a server sent.

    Returns:
        The short name; "" for UNSPECIFIED; the digits of a number that this version of the
        contract does not have.
    """
    if number == 0:
        return ""
    if number not in enum.values():
        return str(number)
    return enum.Name(number).removeprefix(_prefix(enum)).lower()


def _prefix(enum: "EnumTypeWrapper") -> str:
    return enum.keys()[0].removesuffix("UNSPECIFIED")
