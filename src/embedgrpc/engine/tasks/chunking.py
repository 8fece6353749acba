"""Late chunking: one vector for each chunk of a text, from one run over the whole text.

The vector of a chunk is the mean of its tokens' vectors, so that every chunk knows its context.

Source: Günther et al., "Late Chunking", arXiv 2409.04701, and `chunked_pooling` of the published
reference. Special tokens and those of the prompt are in no chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.engine.results.vectors import shorten
from embedgrpc.engine.tokenizing.sentences import find_sentences
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.tokenizers.text_chunks import TextChunks
from embedgrpc.models.tokenizers.tokenized_text import TokenPlaces, byte_places

# The most chunks of a text.
CHUNKS_MAX = 4096


@dataclass(frozen=True, slots=True)
class ByTokens:
    """Chunks of a number of tokens.

    Attributes:
        size: Tokens of a chunk; the last one may have fewer.
        overlap: Tokens that a chunk shares with the one before, fewer than `size`.
        field: The option that says so, for errors.
    """

    size: int
    overlap: int
    field: str


@dataclass(frozen=True, slots=True)
class BySentences:
    """Chunks of a number of sentences.

    Attributes:
        count: Sentences of a chunk; the last one may have fewer.
        field: The option that says so, for errors.
    """

    count: int
    field: str


@dataclass(frozen=True, slots=True, eq=False)
class BySpans:
    """Chunks that the request names.

    Attributes:
        spans: For each text int64 [chunks, 2]: where each chunk starts and ends, in characters.
            Each is read only when it is needed, which raises InvalidRequestError if it is wrong.
        count: The chunks of all texts.
        field: What holds them, for errors.
        indexed: Whether this field holds those of several texts.
    """

    spans: Sequence[IntArray]
    count: int
    field: str
    indexed: bool = True

    def field_of(self, index: int) -> str:
        """Return the field that holds the spans of a text."""
        return f"{self.field}.texts[{index}]" if self.indexed else self.field


Chunking: TypeAlias = ByTokens | BySentences | BySpans


@dataclass(frozen=True, slots=True)
class ChunkVectors:
    """The vectors of a text's chunks.

    Attributes:
        vectors: float32 [chunks, dimensions].
        chunks: Where the chunks stand.
    """

    vectors: FloatArray
    chunks: TextChunks


def find_chunks(
    chunking: Chunking, index: int, text: str, places: TokenPlaces, *, text_field: str
) -> TextChunks:
    """Find the chunks of a text. Takes time in proportion to the text.

    Args:
        chunking: How to find them.
        index: The text's position in the request.
        text: The text.
        places: Where its tokens stand.
        text_field: The field that holds the text, for errors.

    Raises:
        InvalidRequestError: There are too many, or a span is wrong, ends behind the text or has no
            token.
    """
    tokens = places.tokens
    of_text = tokens.of_text.nonzero()[0]  # consecutive
    before = int(of_text[0]) if len(of_text) else 0
    starts, ends = tokens.starts[of_text], tokens.ends[of_text]
    if isinstance(chunking, ByTokens):
        step = chunking.size - chunking.overlap
        # Without chunks that are all overlap.
        first = np.arange(0, max(len(of_text) - chunking.overlap, min(len(of_text), 1)), step)
        last = np.minimum(first + chunking.size, len(of_text))
        check_count(len(first), chunking.field, text_field)
        spans = np.stack([starts[first], ends[last - 1]], axis=1)
    else:
        named = chunking.field_of(index) if isinstance(chunking, BySpans) else ""
        if isinstance(chunking, BySpans):
            spans = chunking.spans[index]
        else:
            spans = find_sentences(text, chunking.count)
        check_count(len(spans), chunking.field, text_field)
        if named and len(spans) and spans[:, 1].max() > len(text):
            place = int(spans[:, 1].argmax())
            field = f"{named}.character_ends[{place}]"
            raise InvalidRequestError(
                f"{field} is {spans[place, 1]}, but the text has {len(text)} characters",
                field=field,
            )
        # The tokens that overlap a span: places never fall from one token to the next.
        first = np.searchsorted(np.maximum.accumulate(ends), spans[:, 0], side="right")
        last = np.searchsorted(np.maximum.accumulate(starts), spans[:, 1], side="left")
        full = last > first
        if named and not full.all():
            field = f"{named}.character_starts[{int(full.argmin())}]"
            raise InvalidRequestError(f"{field} begins a span without any token", field=field)
        # Sentences whose characters the tokenizer drops have no vector.
        spans, first, last = spans[full], first[full], last[full]
    in_bytes = byte_places(text)
    return TextChunks(
        starts=spans[:, 0],
        ends=spans[:, 1],
        byte_starts=in_bytes[spans[:, 0]],
        byte_ends=in_bytes[spans[:, 1]],
        first=first + before,
        last=last + before,
    )


def check_count(count: int, field: str, text_field: str) -> None:
    """Check the number of chunks of a text.

    Args:
        count: The chunks.
        field: What asks for them, for errors.
        text_field: The field that holds the text, for errors.

    Raises:
        InvalidRequestError: There are too many.
    """
    if count > CHUNKS_MAX:
        raise InvalidRequestError(
            f"{field} makes {count} chunks of {text_field}; the limit is {CHUNKS_MAX}",
            field=field,
            metadata={"chunks": str(count), "maxChunks": str(CHUNKS_MAX)},
        )


def pool_chunks(
    vectors: FloatArray, chunks: TextChunks, *, dimensions: int, normalize: bool
) -> ChunkVectors:
    """Average the vectors of each chunk's tokens.

    Args:
        vectors: float32 [tokens, hidden_size].
        chunks: The chunks.
        dimensions: Numbers to keep of each vector.
        normalize: Whether to scale each to unit length.
    """
    means = np.empty((len(chunks.first), vectors.shape[1]), np.float32)
    for row, (first, last) in enumerate(
        zip(chunks.first.tolist(), chunks.last.tolist(), strict=True)
    ):
        means[row] = vectors[first:last].mean(axis=0)
    return ChunkVectors(shorten(means, dimensions=dimensions, normalize=normalize), chunks)


def check_chunks(properties: ModelProperties, *, field: str) -> None:
    """Check that a chunk's vector is what the model makes of a text.

    Args:
        properties: The model's properties.
        field: The option that asks for chunks, for the error.

    Raises:
        UnsupportedError: The model pools in another way than by the mean, or has layers after it.
    """
    if properties.poolings != (Pooling.MEAN,):
        raise UnsupportedError(
            f"the vectors of chunks are means, but the model pools by"
            f" {', '.join(properties.poolings)}: use a model that pools by the mean",
            field=field,
        )
    if properties.dense_layers:
        raise UnsupportedError(
            "the vectors of chunks are means, but the model has Dense modules after the mean:"
            " use a model without them",
            field=field,
        )
