"""What a request says of chunks is read without holding up the event loop."""

import tracemalloc

import pytest

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.chunking_options import read_chunking
from embedgrpc.v1 import embedding_service_pb2 as pb


def test_ends_without_starts_are_not_read() -> None:
    """Their number alone says that the request is wrong."""
    message = pb.TextSpans(character_ends=[1] * 300_000)
    options = pb.EmbedOptions(chunking=pb.Chunking(spans=pb.ChunkBySpans(texts=[message])))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="0 character_starts and 300000 character_e"):
            read_chunking(options, field="options")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
