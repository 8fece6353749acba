"""Bounds the size of an answer before it is made, so that none is made in vain."""

import asyncio
from collections.abc import Sequence

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.models.kinds import Representation

# The model's id of 128 characters at most, a revision, a fingerprint, the usage, and their keys.
COMMON_BYTES = 512
_BITS = {
    Encoding.FLOAT32: 32,
    Encoding.FLOAT16: 16,
    Encoding.BFLOAT16: 16,
    Encoding.INT8: 8,
    Encoding.UBINARY: 1,
}
# An expanding model gives many terms for a token; more than this has not been seen.
_SPARSE_TERMS_PER_TOKEN = 16
# No tokenizer makes more than four tokens of a character, but for a few special ones.
_TOKENS_PER_CHARACTER = 4
_SPECIAL_TOKENS = 8


async def check_embeddings_size(
    texts: Sequence[str],
    spec: EmbedSpec,
    encoding: Encoding,
    *,
    size_bytes: int,
    multi_vector_dimensions: int,
    limit: int,
) -> int:
    """Refuses work whose answer would be too large.

    Args:
        texts: The texts, without the prompt.
        spec: What is asked.
        encoding: How its numbers are written.
        size_bytes: At least how many bytes of UTF-8 the texts have together.
        multi_vector_dimensions: Length of a token's vector.
        limit: The most bytes.

    Returns:
        A bound of the answer's bytes.

    Raises:
        InvalidRequestError: The answer is larger than the limit.
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
    # To look at every text may take milliseconds.
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
    """Bound the bytes of the embeddings of some texts without a look at any of them.

    Args:
        count: How many texts there are.
        spec: What is asked.
        encoding: How its numbers are written.
        size_bytes: At least how many bytes of UTF-8 the texts have together.
        multi_vector_dimensions: Length of a token's vector.
    """
    fixed, per_token = _sizes(spec, encoding, multi_vector_dimensions)
    characters = size_bytes + len(spec.prompt) * count
    tokens = min(
        spec.max_tokens * count, _TOKENS_PER_CHARACTER * characters + _SPECIAL_TOKENS * count
    )
    return count * fixed + per_token * tokens + COMMON_BYTES


def embeddings_size(
    texts: Sequence[str], spec: EmbedSpec, encoding: Encoding, *, multi_vector_dimensions: int
) -> int:
    """Bounds the bytes of one `Embedding` a text, each with its own key.

    Args:
        texts: The texts, without the prompt.
        spec: What is asked.
        encoding: How its numbers are written.
        multi_vector_dimensions: Length of a token's vector.
    """
    fixed, per_token = _sizes(spec, encoding, multi_vector_dimensions)
    size = len(texts) * fixed
    if per_token:
        size += per_token * sum(_tokens_max(text, spec) for text in texts)
    return size


def check_response_size(size: int, *, limit: int) -> None:
    """Refuses work whose answer the client would not accept.

    Args:
        size: The bytes of what is asked for; what every answer says besides is added here.
        limit: The most bytes of an answer.

    Raises:
        InvalidRequestError: The answer is larger than the limit, in bytes.
    """
    size += COMMON_BYTES
    if size > limit:
        raise response_too_large(size, limit)


def response_too_large(size: int, limit: int) -> InvalidRequestError:
    """Tells that an answer of so many bytes would be larger than the limit."""
    return InvalidRequestError(
        f"the answer would have about {size} bytes; the limit is {limit}: send fewer inputs,"
        " use a stream, or accept more",
        metadata={
            "label": "response_too_large",
            "responseBytes": str(size),
            "maxResponseBytes": str(limit),
        },
    )


def _sizes(spec: EmbedSpec, encoding: Encoding, multi_vector_dimensions: int) -> tuple[int, int]:
    """Returns the bytes of an `Embedding` that each text takes, and those that each token does."""
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
    return fixed, per_token


def _tokens_max(text: str, spec: EmbedSpec) -> int:
    characters = len(spec.prompt) + len(text)
    return min(spec.max_tokens, _TOKENS_PER_CHARACTER * characters + _SPECIAL_TOKENS)


def _numbers_size(count: int, encoding: Encoding) -> int:
    return (count * _BITS[encoding] + 7) // 8
