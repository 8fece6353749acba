"""Requests for the chunks of texts, and what they return."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedgrpc.v1 import embedding_service_pb2 as pb


def by_spans(*texts: Sequence[Sequence[int]]) -> pb.Chunking:
    """Return the option that names the chunks of texts."""
    return pb.Chunking(spans=pb.ChunkBySpans(texts=map(spans_of, texts)))


def spans_of(spans: Sequence[Sequence[int]]) -> pb.TextSpans:
    """Return the spans of one text."""
    return pb.TextSpans(
        character_starts=[start for start, _ in spans], character_ends=[end for _, end in spans]
    )


def by_tokens(size: int, overlap: int = 0) -> pb.Chunking:
    """Return the option for chunks of tokens."""
    return pb.Chunking(tokens=pb.ChunkByTokens(size=size, overlap=overlap))


def by_sentences(count: int) -> pb.Chunking:
    """Return the option for chunks of sentences."""
    return pb.Chunking(sentences=pb.ChunkBySentences(count=count))


def rows(found: pb.ChunkVectors) -> Any:
    """Return the vectors, float32 [chunks, dimensions]."""
    return np.array(found.vectors.values, np.float32).reshape(-1, found.vectors.dimensions)


def places(found: pb.ChunkVectors) -> list[list[int]]:
    """Return where the chunks start and end, in characters."""
    pairs = zip(found.character_starts, found.character_ends, strict=True)
    return [list(pair) for pair in pairs]
