"""Bounds the size of a response before any work is done for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.chunking import BySentences, BySpans, ByTokens
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.engine.tokenizing.sentences import find_sentences
from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.models.kinds import Representation

# The model's id of at most 128 characters, a revision, a fingerprint, the usage, and their keys.
COMMON_BYTES = 512
_BITS = {
    Encoding.FLOAT32: 32,
    Encoding.FLOAT16: 16,
    Encoding.BFLOAT16: 16,
    Encoding.INT8: 8,
    Encoding.UBINARY: 1,
}
# SPLADE expands a token to many terms; more than this has not been seen.
_SPARSE_TERMS_PER_TOKEN = 16
# No tokenizer makes more than four tokens of a character, apart from special tokens.
_TOKENS_PER_CHARACTER = 4
_SPECIAL_TOKENS = 8


async def check_embeddings_size(
    texts: Sequence[TextOrIds],
    spec: EmbedSpec,
    encoding: Encoding,
    *,
    size_bytes: int,
    multi_vector_dimensions: int,
    limit: int,
) -> int:
    """Check that the embeddings of some texts fit into one response.

    Args:
        texts: The texts, without the prompt, or the token ids of some.
        spec: The options of the request.
        encoding: The number format.
        size_bytes: An upper bound of the texts' size in UTF-8.
        multi_vector_dimensions: The length of a token's vector.
        limit: The most bytes of a response.

    Returns:
        An upper bound of the response's bytes.

    Raises:
        InvalidRequestError: The response may be larger than the limit.
    """
    bound = bound_embeddings_size(
        len(texts),
        spec,
        encoding,
        size_bytes=size_bytes,
        multi_vector_dimensions=multi_vector_dimensions,
    )
    if bound <= limit:
        return bound
    # Looking at every text may take milliseconds.
    size = await asyncio.to_thread(
        embeddings_size, texts, spec, encoding, multi_vector_dimensions=multi_vector_dimensions
    )
    check_response_size(size, limit=limit)
    return size


def bound_embeddings_size(
    count: int,
    spec: EmbedSpec,
    encoding: Encoding,
    *,
    size_bytes: int,
    multi_vector_dimensions: int,
) -> int:
    """Return an upper bound of the bytes of some texts' embeddings without looking at the texts.

    `size_bytes` is an upper bound of the texts' size in UTF-8.
    """
    fixed, per_token = _sizes(spec, encoding, multi_vector_dimensions)
    named = spec.chunking.count if isinstance(spec.chunking, BySpans) else 0
    return (
        count * fixed
        + per_token * _tokens_bound(count, spec, size_bytes)
        + named * _chunk_size(spec, encoding)
        + COMMON_BYTES
    )


def _tokens_bound(count: int, spec: EmbedSpec, size_bytes: int) -> int:
    characters = size_bytes + len(spec.prompt) * count
    tokens = min(
        spec.max_tokens * count, _TOKENS_PER_CHARACTER * characters + _SPECIAL_TOKENS * count
    )
    # A text that is filled up has at least so many.
    return tokens + spec.min_tokens * count


def bound_rows_size(count: int, spec: EmbedSpec, *, size_bytes: int) -> int:
    """Return an upper bound of the bytes of some texts' token vectors before they are encoded."""
    if not spec.token_dimensions:
        return 0
    return _FLOAT_BYTES * spec.token_dimensions * _tokens_bound(count, spec, size_bytes)


def embeddings_size(
    texts: Sequence[TextOrIds],
    spec: EmbedSpec,
    encoding: Encoding,
    *,
    multi_vector_dimensions: int,
) -> int:
    """Return an upper bound of the bytes of one `Embedding` field per text."""
    exact = _exact_chunks_size(texts, spec, encoding)
    if exact is not None:
        spec = replace(spec, chunking=None)
    fixed, per_token = _sizes(spec, encoding, multi_vector_dimensions)
    size = len(texts) * fixed + (exact or 0)
    if per_token:
        size += per_token * sum(_tokens_max(text, spec) for text in texts)
    return size


# The id of a token, its four places and two flags, as varints.
_PLACES_BYTES = 28
_FLOAT_BYTES = 4
# The four places of a chunk and its number of tokens, as varints.
_CHUNK_PLACES_BYTES = 25
# The keys and lengths of the lists in the field of tokens or chunks.
_FIELD_BYTES = 96

# The error of one input, with its message and variables.
FAILURE_BYTES = 512


def check_response_size(size: int, *, limit: int) -> None:
    """Check that a response fits the limit.

    Args:
        size: The bytes of its results; the fields that every response has are added here.
        limit: The most bytes of a response.

    Raises:
        InvalidRequestError: It does not.
    """
    size += COMMON_BYTES
    if size > limit:
        raise response_too_large(size, limit)


def response_too_large(size: int, limit: int) -> InvalidRequestError:
    """Return the error for a response that would be larger than the limit."""
    return InvalidRequestError(
        f"the answer would have about {size} bytes; the limit is {limit}: send fewer inputs,"
        " use a stream, or accept more",
        metadata={
            "label": "RESPONSE_TOO_LARGE",
            "responseBytes": str(size),
            "maxResponseBytes": str(limit),
        },
    )


def _sizes(spec: EmbedSpec, encoding: Encoding, multi_vector_dimensions: int) -> tuple[int, int]:
    """Return the bytes of an `Embedding` per text, and per token."""
    # Varints of lengths and counts, their keys, encoding, scale and flag.
    fixed = 48
    per_token = 0
    if Representation.DENSE in spec.representations:
        fixed += _numbers_size(spec.dimensions, encoding)
    if Representation.SPARSE in spec.representations:
        fixed += 8 * spec.max_sparse_terms + 24
        per_token += 0 if spec.max_sparse_terms else 8 * _SPARSE_TERMS_PER_TOKEN
    if Representation.MULTI_VECTOR in spec.representations:
        fixed += 40
        per_token += _numbers_size(multi_vector_dimensions, encoding) + 4
    if spec.returns_tokens:
        fixed += _FIELD_BYTES
        per_token += _numbers_size(spec.token_dimensions, encoding) + 4 + _PLACES_BYTES
    if spec.chunking is not None:
        # Of the spans that a request names, the number is known.
        chunk = 0 if isinstance(spec.chunking, BySpans) else _chunk_size(spec, encoding)
        fixed += _FIELD_BYTES + chunk
        match spec.chunking:
            case ByTokens(size, overlap):
                per_token += -(-chunk // (size - overlap))
            case BySentences(count):
                per_token += -(-chunk // count)
    return fixed, per_token


def _exact_chunks_size(
    texts: Sequence[TextOrIds], spec: EmbedSpec, encoding: Encoding
) -> int | None:
    """Return the bytes of the chunks, if they do not depend on the tokenizer; else None."""
    match spec.chunking:
        case BySentences(count):
            chunks = sum(
                len(find_sentences(text, count)) for text in texts if isinstance(text, str)
            )
        case BySpans(count=chunks):
            pass
        case _:
            return None
    return chunks * _chunk_size(spec, encoding) + _FIELD_BYTES * len(texts)


def _chunk_size(spec: EmbedSpec, encoding: Encoding) -> int:
    return _numbers_size(spec.dimensions, encoding) + 4 + _CHUNK_PLACES_BYTES


def _tokens_max(text: TextOrIds, spec: EmbedSpec) -> int:
    # A token counts no more than a character.
    characters = len(spec.prompt) + len(text)
    tokens = min(spec.max_tokens, _TOKENS_PER_CHARACTER * characters + _SPECIAL_TOKENS)
    return max(tokens, spec.min_tokens)


def _numbers_size(count: int, encoding: Encoding) -> int:
    return (count * _BITS[encoding] + 7) // 8
