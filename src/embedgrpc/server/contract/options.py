"""Reads the options that requests to every kind of model have. Errors name the field."""

import re
from collections.abc import Collection
from typing import Any

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import TextRole, Truncation
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.limits import PROMPT_CHARACTERS_MAX
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX
from embedgrpc.v1 import common_pb2

TRUNCATIONS: dict[int, Truncation] = {
    common_pb2.TRUNCATION_NONE: Truncation.NONE,
    common_pb2.TRUNCATION_END: Truncation.END,
    common_pb2.TRUNCATION_START: Truncation.START,
}
# The prompt names that models use for an input type; the first that a model has applies.
_PROMPT_NAMES: dict[int, tuple[str, ...]] = {
    common_pb2.INPUT_TYPE_QUERY: ("query", "search_query", "retrieval.query", "Retrieval-query"),
    common_pb2.INPUT_TYPE_DOCUMENT: (
        "document",
        "passage",
        "corpus",
        "search_document",
        "retrieval.passage",
        "Retrieval-document",
    ),
    common_pb2.INPUT_TYPE_CLASSIFICATION: ("classification", "Classification"),
    common_pb2.INPUT_TYPE_CLUSTERING: ("clustering", "Clustering"),
    common_pb2.INPUT_TYPE_SIMILARITY: ("similarity", "STS", "sts", "text-matching"),
}

_INSTRUCTION = re.compile(r"(?P<before>Instruct: ).*(?P<after>\nQuery: ?)", re.DOTALL)


def read_truncation(value: int, *, default: Truncation, field: str) -> Truncation:
    """Return a truncation; the default where it is unspecified."""
    check_enum(common_pb2.Truncation, value, field=field)
    return TRUNCATIONS.get(value, default)


def read_max_tokens(value: int, *, limit: int, special_tokens: int, field: str) -> int:
    """Return a limit of tokens: the model's where the value is 0 or larger than that."""
    check_not_negative(value, field=field)
    if value and value <= special_tokens:
        raise InvalidRequestError(
            f"{field} is {value}; the model needs {special_tokens} for special tokens and at"
            " least 1 for the text",
            field=field,
            metadata={"maxTokens": str(value), "specialTokens": str(special_tokens)},
        )
    return min(value, limit) if value else limit


def read_prompt(
    options: Any,
    properties: ModelProperties,
    *,
    field: str,
    of: str = "",
    default: str | None = None,
) -> str:
    """Read which prompt goes in front of a text.

    Args:
        options: A message with the oneof `prompt`, or another one whose names begin with `of`.
        properties: What the model is.
        field: Where the options stand in the request.
        of: What the names begin with, such as `query_`.
        default: The prompt when none is chosen; None for the model's default.

    Raises:
        InvalidRequestError: The prompt is too long, its name is, or the role is unknown.
        UnsupportedError: The model has no prompt of this name.
    """
    chosen = options.WhichOneof(f"{of}prompt")
    if chosen is None:
        return (
            prompt_for(common_pb2.INPUT_TYPE_UNSPECIFIED, properties)
            if default is None
            else default
        )
    # Read once: it may be megabytes.
    value = getattr(options, chosen)
    place = f"{field}.{chosen}"
    match chosen.removeprefix(of):
        case "prompt_text":
            check_characters(value, limit=PROMPT_CHARACTERS_MAX, field=place)
            return str(value)
        case "prompt_name":
            return _named_prompt(value, properties, field=place)
        case _:
            check_enum(common_pb2.InputType, value, field=place)
            return prompt_for(value, properties)


def read_task(
    options: Any,
    properties: ModelProperties,
    *,
    field: str,
    of: str = "",
    default: int = common_pb2.INPUT_TYPE_UNSPECIFIED,
) -> int:
    """Return the task that the name of the prompt chooses; 0 if the model has no tasks.

    Args:
        options: As for `read_prompt`, which has accepted them.
        properties: The model's properties.
        field: The path of the options in the request.
        of: The beginning of the names in the oneof.
        default: The input type if no prompt is chosen.

    Raises:
        UnsupportedError: The model has tasks, and the prompt names none of them.
    """
    if not properties.tasks:
        return 0
    chosen = options.WhichOneof(f"{of}prompt")
    match (chosen or "").removeprefix(of):
        case "prompt_name":
            name = getattr(options, chosen)
        case "input_type":
            name = _prompt_name_for(getattr(options, chosen), properties)
        case "instruction":
            name = _prompt_name_for(common_pb2.INPUT_TYPE_QUERY, properties)
        case "prompt_text":
            name = ""
        case _:
            name = _prompt_name_for(default, properties)
    if name not in properties.tasks:
        raise UnsupportedError(
            "the model computes a task that the prompt's name chooses: name one of"
            f" {list_names(properties.tasks)}",
            field=f"{field}.{of}prompt_name",
        )
    return properties.tasks[name]


def read_role(options: Any, properties: ModelProperties, *, field: str) -> TextRole | None:
    """Return what texts are to a model of late interaction; None for other models.

    Args:
        options: As for `read_prompt`, which has accepted them.
        properties: The model's properties.
        field: The path of the options in the request.

    Raises:
        UnsupportedError: The request does not say whether the texts are queries or documents.
    """
    if properties.late_interaction is None:
        return None
    chosen = options.WhichOneof("prompt")
    name = ""
    if chosen == "prompt_name":
        name = options.prompt_name
    elif chosen == "input_type":
        name = _ROLES.get(options.input_type, "")
    if name not in set(TextRole):
        raise UnsupportedError(
            "the model computes queries and documents in different ways: set input_type to"
            " QUERY or DOCUMENT",
            field=f"{field}.input_type",
        )
    return TextRole(name)


def read_text_role(options: Any, *, field: str) -> TextRole | None:
    """Return what the input type says that texts are; None if it says neither.

    Args:
        options: A message with the oneof `prompt`.
        field: The path of the options in the request.

    Raises:
        InvalidRequestError: The input type is unknown.
    """
    if options.WhichOneof("prompt") != "input_type":
        return None
    check_enum(common_pb2.InputType, options.input_type, field=f"{field}.input_type")
    return _ROLES.get(options.input_type)


def no_route(
    role: TextRole | None, known: Collection[TextRole | None], *, field: str
) -> UnsupportedError:
    """Return the error for texts of a role that a model does not compute.

    Args:
        role: The role; None for a request that names none.
        known: The roles that it computes.
        field: The path of the options in the request.
    """
    names = " or ".join(one.name for one in known if one is not None)
    if role is None:
        problem = "has no route for texts that are neither queries nor documents"
        advice = f"set input_type to {names}"
    else:
        problem = f"has no route for input_type {role.name}"
        advice = f"set it to {names}" if names else "leave it out"
    return UnsupportedError(f"the model {problem}: {advice}", field=f"{field}.input_type")


_ROLES: dict[int, TextRole] = {
    common_pb2.INPUT_TYPE_QUERY: TextRole.QUERY,
    common_pb2.INPUT_TYPE_DOCUMENT: TextRole.DOCUMENT,
}


def check_characters(text: str, *, limit: int, field: str) -> None:
    """Refuse a prompt that is too long."""
    if len(text) > limit:
        raise InvalidRequestError(
            f"{field} has {len(text)} characters; the limit is {limit}",
            field=field,
            metadata={"characters": str(len(text)), "maxCharacters": str(limit)},
        )


def prompt_for(input_type: int, properties: ModelProperties) -> str:
    """Return the model's prompt for an input type, or else its default prompt."""
    return properties.prompts.get(_prompt_name_for(input_type, properties), "")


def prompt_for_role(role: TextRole | None, properties: ModelProperties) -> str:
    """Return the model's prompt for the texts of a role, or else its default prompt."""
    input_types = [one for one, its_role in _ROLES.items() if its_role is role]
    return prompt_for((*input_types, common_pb2.INPUT_TYPE_UNSPECIFIED)[0], properties)


def _prompt_name_for(input_type: int, properties: ModelProperties) -> str:
    for name in _PROMPT_NAMES.get(input_type, ()):
        if name in properties.prompts:
            return name
    return properties.default_prompt_name


def instruction_prompt(instruction: str, properties: ModelProperties) -> str | None:
    """Return the query prompt with another instruction; None if the model takes none.

    Source: the model cards of Qwen3-Embedding and E5-Instruct, whose query prompts have this form.
    """
    match = _INSTRUCTION.fullmatch(prompt_for(common_pb2.INPUT_TYPE_QUERY, properties))
    return None if match is None else f"{match['before']}{instruction}{match['after']}"


def _named_prompt(name: str, properties: ModelProperties, *, field: str) -> str:
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"{field} has {len(name)} characters; it must have 1 to {NAME_CHARACTERS_MAX}",
            field=field,
        )
    if name not in properties.prompts:
        raise UnsupportedError(
            f"the model has no prompt {show_name(name)}; it has: {list_names(properties.prompts)}",
            field=field,
        )
    return properties.prompts[name]
