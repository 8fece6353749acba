"""Reads words that protocols share, such as roles and truncations, as the contract's enums."""

from collections.abc import Mapping
from typing import Final, TypeVar

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.v1 import common_pb2, embedding_service_pb2

Meaning = TypeVar("Meaning")

# OpenAI has no such key; Cohere, Voyage and NVIDIA NIM use these values.
_INPUT_TYPES: Final[Mapping[str, common_pb2.InputType]] = {
    "query": common_pb2.INPUT_TYPE_QUERY,
    "document": common_pb2.INPUT_TYPE_DOCUMENT,
    "passage": common_pb2.INPUT_TYPE_DOCUMENT,
    "search_query": common_pb2.INPUT_TYPE_QUERY,
    "search_document": common_pb2.INPUT_TYPE_DOCUMENT,
    "classification": common_pb2.INPUT_TYPE_CLASSIFICATION,
    "clustering": common_pb2.INPUT_TYPE_CLUSTERING,
    "similarity": common_pb2.INPUT_TYPE_SIMILARITY,
}
_TRUNCATIONS: Final[Mapping[str, common_pb2.Truncation]] = {
    "none": common_pb2.TRUNCATION_NONE,
    "start": common_pb2.TRUNCATION_START,
    "end": common_pb2.TRUNCATION_END,
    # text-embeddings-inference names the end that is cut.
    "left": common_pb2.TRUNCATION_START,
    "right": common_pb2.TRUNCATION_END,
}
_ENCODINGS: Final[Mapping[str, embedding_service_pb2.VectorEncoding]] = {
    "float32": embedding_service_pb2.VECTOR_ENCODING_FLOAT32,
    "float16": embedding_service_pb2.VECTOR_ENCODING_FLOAT16,
    "bfloat16": embedding_service_pb2.VECTOR_ENCODING_BFLOAT16,
    "int8": embedding_service_pb2.VECTOR_ENCODING_INT8,
    "ubinary": embedding_service_pb2.VECTOR_ENCODING_UBINARY,
}


def read_word(value: str, known: Mapping[str, Meaning], *, field: str) -> Meaning:
    """Return what a word means; upper and lower case are the same.

    Raises:
        InvalidRequestError: It is unknown.
    """
    found = known.get(value.lower())
    if found is None:
        raise InvalidRequestError(
            f"{field} is {show_name(value)}; it must be one of {list_names(tuple(known))}",
            field=field,
        )
    return found


def read_input_type(value: str, *, field: str = "input_type") -> common_pb2.InputType:
    """Return the contract's input type."""
    return read_word(value, _INPUT_TYPES, field=field)


def read_truncation(
    value: bool | str | None,  # noqa: FBT001 - as JSON has it
    *,
    field: str = "truncate",
) -> common_pb2.Truncation:
    """Return the contract's truncation; true and false stand for the end and none."""
    match value:
        case None:
            return common_pb2.TRUNCATION_UNSPECIFIED
        case True:
            return common_pb2.TRUNCATION_END
        case False:
            return common_pb2.TRUNCATION_NONE
        case _:
            return read_word(value, _TRUNCATIONS, field=field)


def read_encoding(
    value: str | None, *, field: str = "encoding"
) -> embedding_service_pb2.VectorEncoding:
    """Return the contract's number format."""
    if value is None:
        return embedding_service_pb2.VECTOR_ENCODING_UNSPECIFIED
    return read_word(value, _ENCODINGS, field=field)
