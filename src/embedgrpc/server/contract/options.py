"""Reads the options that requests to every kind of model have. Errors name the field."""

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Truncation
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
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


def prompt_for(input_type: int, properties: ModelProperties) -> str:
    """Return the model's prompt for an input type, or else its default prompt."""
    for name in _PROMPT_NAMES.get(input_type, ()):
        if name in properties.prompts:
            return properties.prompts[name]
    return properties.prompts.get(properties.default_prompt_name, "")
