from collections.abc import Sequence

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.server.calls.field_count import SMALL_BYTES, has_more_fields
from embedgrpc.server.contract.wire import delimited, tag, varint
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.conftest import Serve
from tests.server.failures import failure_of

EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
RERANK = "/embedgrpc.v1.RerankService/Rerank"
PADDING = "x" * (SMALL_BYTES + 1)
REQUEST = pb.EmbedRequest.DESCRIPTOR
STREAM = pb.StreamEmbedRequest.DESCRIPTOR
MANY = SMALL_BYTES


def padded(fields: bytes) -> bytes:
    """Return a message that is large enough to be counted; the padding is a field."""
    return fields + pb.EmbedRequest(texts=[PADDING]).SerializeToString()


# Messages, and their numbers of fields.
CASES = {
    "texts": (pb.EmbedRequest(texts=["a", "", "b"]).SerializeToString(), 3),
    "options": (pb.EmbedRequest(options=pb.EmbedOptions(dimensions=9)).SerializeToString(), 2),
    "packed numbers": (delimited(3, delimited(1, bytes(130))), 1 + 1 + 2),
    "unknown fields": (tag(99, 0) + varint(2**60) + delimited(98, b"\x12\x00" * 50), 2),
    "fixed numbers": (tag(90, 1) + bytes(8) + tag(91, 5) + bytes(4), 2),
    "a group": (tag(90, 3) + tag(91, 0) + b"\x01" + tag(90, 4), 3),
}


@pytest.mark.parametrize(("fields", "count"), CASES.values(), ids=CASES)
def test_fields_are_counted(fields: bytes, count: int) -> None:
    """Each field counts, also in a nested message, and 64 bytes of packed numbers as one."""
    data = padded(fields)
    assert not has_more_fields(data, REQUEST, count + 1)
    assert has_more_fields(data, REQUEST, count)
    assert has_more_fields(data, REQUEST, 0)
    pb.EmbedRequest.FromString(data)


def test_inputs_of_a_stream_are_counted() -> None:
    """A batch is one field, an input another, and its id and text two more."""
    inputs = [pb.StreamEmbedInput(id=str(number), text=PADDING[:9000]) for number in range(40)]
    data = pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs)).SerializeToString()
    assert not has_more_fields(data, STREAM, 1 + 40 * 3)
    assert has_more_fields(data, STREAM, 40 * 3)


def test_a_small_message_is_not_counted() -> None:
    """It is parsed quickly, whatever its fields."""
    assert not has_more_fields(b"\x12\x00" * (SMALL_BYTES // 2), REQUEST, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80" * MANY * 2,
        b"\x12" + b"\xff" * MANY * 2,
        b"\x78" + b"\x80" * MANY * 2,
        delimited(2, bytes(MANY * 2))[:-1],
        b"\x12" * (MANY * 2 + 1),
    ],
)
def test_a_malformed_message_is_left_to_the_parser(data: bytes) -> None:
    """Endless numbers and truncated fields are not counted; the parser refuses them."""
    assert not has_more_fields(data, REQUEST, 10**9)
    with pytest.raises(Exception, match="Error parsing"):
        pb.EmbedRequest.FromString(data)


@given(data=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_can_be_counted(data: bytes) -> None:
    """Counting any bytes raises no exception."""
    for descriptor in (REQUEST, STREAM, rerank.RerankRequest.DESCRIPTOR):
        has_more_fields(padded(data), descriptor, 1000)
        has_more_fields(data * (MANY // max(len(data), 1) + 2), descriptor, 1000)


FLOODS: dict[str, Sequence[object]] = {
    "empty texts": (EMBED, b"\x12\x00" * 2_000_000),
    "unknown fields": (EMBED, b"\x78\x00" * 2_000_000),
    "fields of options": (EMBED, delimited(3, b"\x78\x00" * 2_000_000)),
    "empty documents": (RERANK, b"\x1a\x00" * 2_000_000),
}


@pytest.mark.parametrize(("method", "data"), FLOODS.values(), ids=FLOODS)
async def test_floods_of_fields_are_refused(serve: Serve, method: str, data: bytes) -> None:
    """A message with millions of fields is refused before it is parsed; other calls go on."""
    service = await serve()
    failure = await failure_of(service.client.send_bytes(method, data))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.label == "TOO_MANY_FIELDS"
    assert failure.metadata["maxFields"] == str(service.server._settings.max_fields)
    await service.check_alive()


async def test_the_largest_requests_are_let_through(serve: Serve) -> None:
    """A request with the most inputs, large enough to be counted, is served."""
    service = await serve(max_inputs=300)
    texts = ["some words " * 100] * 300
    assert len((await service.client.embed(*texts)).embeddings) == 300
