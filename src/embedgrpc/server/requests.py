"""Reads what every request has: its call, its model, its options; each check names its field."""

import math
import time
from typing import Any
from urllib.parse import unquote

from embedgrpc.engine.embeddings import EmbedSpec
from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.engine.vectors import Encoding
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.kinds import Representation
from embedgrpc.models.metadata import ModelMetadata
from embedgrpc.models.tokenizer import Truncation
from embedgrpc.server.checks import check_enum, check_not_negative
from embedgrpc.server.model_settings import NAME_CHARACTERS_MAX
from embedgrpc.server.settings import Settings
from embedgrpc.server.tracing import current_context, forwarded_context
from embedgrpc.v1 import common_pb2, embedding_service_pb2

ENCODINGS: dict[int, Encoding] = {
    embedding_service_pb2.VECTOR_ENCODING_UNSPECIFIED: Encoding.FLOAT32,
    embedding_service_pb2.VECTOR_ENCODING_FLOAT32: Encoding.FLOAT32,
    embedding_service_pb2.VECTOR_ENCODING_FLOAT16: Encoding.FLOAT16,
    embedding_service_pb2.VECTOR_ENCODING_BFLOAT16: Encoding.BFLOAT16,
    embedding_service_pb2.VECTOR_ENCODING_INT8: Encoding.INT8,
    embedding_service_pb2.VECTOR_ENCODING_UBINARY: Encoding.UBINARY,
}
REPRESENTATIONS: dict[int, Representation] = {
    embedding_service_pb2.REPRESENTATION_DENSE: Representation.DENSE,
    embedding_service_pb2.REPRESENTATION_SPARSE: Representation.SPARSE,
    embedding_service_pb2.REPRESENTATION_MULTI_VECTOR: Representation.MULTI_VECTOR,
}
TRUNCATIONS: dict[int, Truncation] = {
    common_pb2.TRUNCATION_NONE: Truncation.NONE,
    common_pb2.TRUNCATION_END: Truncation.END,
    common_pb2.TRUNCATION_START: Truncation.START,
}
# Under which names models keep the prompt of a role; the first that a model has is taken.
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
_PROMPT_CHARACTERS_MAX = 8192
# Of a number that somebody else writes.
_DIGITS_MAX = 11
# What a gRPC client accepts unless it was told otherwise.
_CLIENT_RESPONSE_BYTES = 4 * 1024 * 1024
# How a call says how soon its answer is needed.
_WORK_CLASS_KEY = "embedgrpc-work-class"
_WORK_CLASSES: dict[str | bytes, WorkClass] = {one.name.lower(): one for one in WorkClass}
# How a client that accepts more, or less, says so.
_CLIENT_RESPONSE_BYTES_KEY = "embedgrpc-max-response-bytes"


def begin_call(
    context: Any, work_class: WorkClass, settings: Settings, *, max_s: float = math.inf
) -> Call:
    """Reads what holds for the whole RPC: the deadline once, on a clock that does not step.

    Args:
        context: The RPC's context.
        work_class: Interactive for unary calls, bulk for streams, unless the metadata
            `embedgrpc-work-class` says otherwise.
        settings: Tell how callers are told apart.
        max_s: The server's own limit.

    Raises:
        InvalidRequestError: The metadata names no class.
    """
    remaining_s = context.time_remaining()
    limit_s = max_s if remaining_s is None else min(remaining_s, max_s)
    named = _metadata(context, _WORK_CLASS_KEY)
    if named is not None and named not in _WORK_CLASSES:
        raise InvalidRequestError(
            f"metadata {_WORK_CLASS_KEY}, of {len(named)} characters, is neither interactive nor"
            " bulk",
            field=_WORK_CLASS_KEY,
        )
    return Call(
        work_class=work_class if named is None else _WORK_CLASSES[named],
        deadline=time.monotonic() + limit_s,
        caller=_caller(context, settings.caller_metadata),
        trace=current_context(),
        forwarded=forwarded_context(),
    )


def _caller(context: Any, key: str) -> str:
    """Tells who calls: what a trusted proxy says, or else the address, without its port.

    Whoever opens more connections gets no more of the machine.
    """
    named = _metadata(context, key) if key else None
    if named:
        return named if isinstance(named, str) else named.hex()
    peer = unquote(context.peer())
    return peer.rpartition(":")[0] or peer


def _metadata(context: Any, wanted: str) -> str | bytes | None:
    for key, value in context.invocation_metadata() or ():
        if key == wanted:
            found: str | bytes = value
            return found
    return None


def client_response_bytes(context: Any) -> int:
    """Tells how large an answer the client accepts."""
    value = _metadata(context, _CLIENT_RESPONSE_BYTES_KEY)
    if value is None:
        return _CLIENT_RESPONSE_BYTES
    if isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS_MAX:
        return int(value)
    raise InvalidRequestError(
        f"metadata {_CLIENT_RESPONSE_BYTES_KEY} is not a number of bytes",
        field=_CLIENT_RESPONSE_BYTES_KEY,
    )


def read_truncation(value: int, *, default: Truncation, field: str) -> Truncation:
    """Reads a truncation; unspecified is the model's default."""
    check_enum(common_pb2.Truncation, value, field=field)
    return TRUNCATIONS.get(value, default)


def read_max_tokens(value: int, *, limit: int, special_tokens: int, field: str) -> int:
    """Reads a number of tokens; 0, or more than the model can read, is the model's limit."""
    check_not_negative(value, field=field)
    if value and value <= special_tokens:
        raise InvalidRequestError(
            f"{field} is {value}; the model needs {special_tokens} for special tokens and at"
            " least 1 for the text",
            field=field,
            metadata={"maxTokens": str(value), "specialTokens": str(special_tokens)},
        )
    return min(value, limit) if value else limit


def read_encoding(value: int, *, field: str) -> Encoding:
    """Reads an encoding."""
    check_enum(embedding_service_pb2.VectorEncoding, value, field=field)
    return ENCODINGS[value]


def read_embed_spec(
    options: embedding_service_pb2.EmbedOptions,
    metadata: ModelMetadata,
    *,
    default_truncation: Truncation,
    special_tokens: int,
    field: str,
) -> EmbedSpec:
    """Reads how texts are to be embedded.

    Args:
        options: The request's options.
        metadata: What the model is.
        default_truncation: Used where the options say nothing.
        special_tokens: How many the model puts around a text.
        field: Where the options stand in the request.

    Raises:
        InvalidRequestError: A value is wrong for every model.
        UnsupportedError: This model lacks what is asked for.
    """
    representations = _read_representations(options, metadata, field=field)
    check_not_negative(options.dimensions, field=f"{field}.dimensions")
    if options.dimensions and Representation.DENSE not in metadata.representations:
        raise UnsupportedError(
            "the model has no dense vectors",
            field=f"{field}.dimensions",
            metadata={"label": "missing_dimensions"},
        )
    if options.dimensions > metadata.dimensions:
        raise InvalidRequestError(
            f"{field}.dimensions is {options.dimensions}; the model has {metadata.dimensions}",
            field=f"{field}.dimensions",
            metadata={
                "dimensions": str(options.dimensions),
                "maxDimensions": str(metadata.dimensions),
            },
        )
    check_not_negative(options.max_sparse_terms, field=f"{field}.max_sparse_terms")
    return EmbedSpec(
        prompt=_read_prompt(options, metadata, field=field),
        dimensions=options.dimensions or metadata.dimensions,
        normalize=options.normalize if options.HasField("normalize") else metadata.normalize,
        truncation=read_truncation(
            options.truncation, default=default_truncation, field=f"{field}.truncation"
        ),
        max_tokens=read_max_tokens(
            options.max_tokens,
            limit=metadata.max_tokens,
            special_tokens=special_tokens,
            field=f"{field}.max_tokens",
        ),
        representations=representations,
        max_sparse_terms=options.max_sparse_terms,
    )


def prompt_for(input_type: int, metadata: ModelMetadata) -> str:
    """Returns the model's prompt for a role; its default prompt where it has none for it."""
    for name in _PROMPT_NAMES.get(input_type, ()):
        if name in metadata.prompts:
            return metadata.prompts[name]
    return metadata.prompts.get(metadata.default_prompt_name, "")


def _read_representations(
    options: embedding_service_pb2.EmbedOptions, metadata: ModelMetadata, *, field: str
) -> tuple[Representation, ...]:
    chosen: list[Representation] = []
    for index, asked in enumerate(options.representations):
        place = f"{field}.representations[{index}]"
        check_enum(embedding_service_pb2.Representation, asked, field=place)
        if asked == embedding_service_pb2.REPRESENTATION_UNSPECIFIED:
            raise InvalidRequestError(f"{place} is unspecified", field=place)
        representation = REPRESENTATIONS[asked]
        if representation in chosen:
            raise InvalidRequestError(f"{place} is asked for twice", field=place)
        if representation not in metadata.representations:
            raise UnsupportedError(
                f"the model does not return {representation}",
                field=place,
                metadata={
                    "label": "missing_representation",
                    "representation": representation.value,
                },
            )
        chosen.append(representation)
    return tuple(chosen) or metadata.representations[:1]


def _read_prompt(
    options: embedding_service_pb2.EmbedOptions, metadata: ModelMetadata, *, field: str
) -> str:
    match options.WhichOneof("prompt"):
        case "prompt_text":
            # It is tokenized once for every text, so that a long one multiplies.
            if len(options.prompt_text) > _PROMPT_CHARACTERS_MAX:
                raise InvalidRequestError(
                    f"{field}.prompt_text has {len(options.prompt_text)} characters; the limit"
                    f" is {_PROMPT_CHARACTERS_MAX}",
                    field=f"{field}.prompt_text",
                )
            return options.prompt_text
        case "prompt_name":
            return _named_prompt(options.prompt_name, metadata, field=f"{field}.prompt_name")
        case _:
            check_enum(common_pb2.InputType, options.input_type, field=f"{field}.input_type")
            return prompt_for(options.input_type, metadata)


def _named_prompt(name: str, metadata: ModelMetadata, *, field: str) -> str:
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"{field} has {len(name)} characters; it must have 1 to {NAME_CHARACTERS_MAX}",
            field=field,
        )
    if name not in metadata.prompts:
        raise UnsupportedError(
            f"the model has no prompt of this name; it has {len(metadata.prompts)}",
            field=field,
            metadata={"label": "missing_prompt"},
        )
    return metadata.prompts[name]
