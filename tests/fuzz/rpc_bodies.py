"""Mutated messages of every RPC, for a server on a socket.

An input is the number of a method in one byte, then each message behind its length in four bytes.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.fuzz.fuzzed_server import FuzzedServer, check_details, fuzzed_server
from tests.fuzz.mutation import NUMBERS, mutate_bytes, some
from tests.fuzz.target import Execute, Refusals, Target
from tests.server.kserve.requests import pairs_for, request_for
from tests.server.rankings import part, setup
from tests.server.service import PATIENCE_S

_LENGTH = struct.Struct(">I")
_OPTIONS = embedding.EmbedOptions(dimensions=8, encoding="VECTOR_ENCODING_INT8", max_tokens=50)
_TEXTS = ("a text", "", " ", "\u200b", "\ud7ff\U0010ffff", "a " * 500, "[SEP] [CLS]", "\0")


def _setup(**fields: Any) -> embedding.StreamEmbedRequest:
    return embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup(**fields))


def _batch(*texts: str) -> embedding.StreamEmbedRequest:
    inputs = [embedding.StreamEmbedInput(id=text, text=text) for text in texts]
    return embedding.StreamEmbedRequest(batch=embedding.StreamEmbedBatch(inputs=inputs))


_RERANK_OPTIONS = rerank.RerankOptions(top_n=1, return_documents=True)
_RERANK = rerank.RerankRequest(
    model="cross", query="a query", documents=["one", "two"], options=_RERANK_OPTIONS
)
_PARAMETERS = {
    "dimensions": service_pb2.InferParameter(int64_param=8),
    "truncate": service_pb2.InferParameter(string_param="END"),
}
# The path, whether requests are a stream, whether responses are one, and messages to start from.
_METHODS: tuple[tuple[str, bool, bool, tuple[Message, ...]], ...] = (
    (
        "/embedgrpc.v1.EmbeddingService/Embed",
        False,
        False,
        (embedding.EmbedRequest(model="embed", texts=["a text", "more"], options=_OPTIONS),),
    ),
    (
        "/embedgrpc.v1.EmbeddingService/StreamEmbed",
        True,
        True,
        (_setup(model="embed", options=_OPTIONS), _batch("a text", "more"), _batch("end")),
    ),
    ("/embedgrpc.v1.RerankService/Rerank", False, False, (_RERANK,)),
    (
        "/embedgrpc.v1.RerankService/StreamRerank",
        True,
        True,
        (
            setup("cross", top_n=1),
            part("1", "a query", ["one", "two"]),
            part("2", "a query", ["one"], more=True),
            part("2", "", ["two"]),
        ),
    ),
    (
        "/embedgrpc.v1.ClassifyService/Classify",
        False,
        False,
        (
            classify.ClassifyRequest(
                model="cross",
                pairs=[classify.TextPair(first="a text", second="more")],
                options=classify.ClassifyOptions(top_k=1),
            ),
            classify.ClassifyRequest(model="cross", texts=["a text", ""], allow_partial=True),
        ),
    ),
    (
        "/embedgrpc.v1.ModelService/ListModels",
        False,
        False,
        (models.ListModelsRequest(page_size=1),),
    ),
    ("/embedgrpc.v1.ModelService/GetModel", False, False, (models.GetModelRequest(model="embed"),)),
    ("/embedgrpc.v1.ModelService/GetServer", False, False, (models.GetServerRequest(),)),
    (
        "/embedgrpc.v1.TokenizerService/Tokenize",
        False,
        False,
        (tokenizer.TokenizeRequest(model="embed", texts=["a text", ""]),),
    ),
    (
        "/embedgrpc.v1.TokenizerService/CountTokens",
        False,
        False,
        (tokenizer.CountTokensRequest(model="embed", texts=["a text", ""]),),
    ),
    (
        "/inference.GRPCInferenceService/ModelInfer",
        False,
        False,
        (request_for("a text", "more", model_name="embed", id="1", parameters=_PARAMETERS),),
    ),
    (
        "/inference.GRPCInferenceService/ModelInfer",
        False,
        False,
        (request_for("a text", "more", raw=False),),
    ),
    (
        "/inference.GRPCInferenceService/ModelInfer",
        False,
        False,
        (pairs_for("a query", ["one", "two"], model_name="cross"),),
    ),
    (
        "/inference.GRPCInferenceService/ModelStatistics",
        False,
        False,
        (service_pb2.ModelStatisticsRequest(name="embed", version="1"),),
    ),
    ("/grpc.health.v1.Health/Check", False, False, (health_pb2.HealthCheckRequest(service=""),)),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        True,
        True,
        (
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="embedgrpc.v1.Model"),
        ),
    ),
)
_WORDS = (
    b"\x0a\x00", b"\x12\x00", b"\x1a\x00", b"\x08\x01", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b",
    b"\x12\x01a", b"\x12\x01\xff", b"\xff" * 10, b"\x80" * 10, b"\x0d\x00\x00\x80\x7f",
    b"\x0c", b"\x1b" * 120, "\u200b".encode(), "\U0001f600".encode(),
    b"embed", b"cross", b"[SEP]", b"\x00",
)  # fmt: skip
# Their refusals have details.
_OURS = ("/embedgrpc.", "/inference.")
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


def _mutate(random: Random) -> bytes:
    number = random.randrange(len(_METHODS))
    messages = [_copy(message) for message in _METHODS[number][3]]
    if len(messages) > 1:
        for _ in range(random.choice((0, 0, 0, 1, 2))):
            _reorder(random, messages)
    content = bytes([number])
    for message in messages:
        for _ in range(some(random)):
            _change_field(random, message)
        body = message.SerializeToString()
        if random.random() < 0.5:
            body = mutate_bytes(random, body, _WORDS)
        content += _LENGTH.pack(len(body)) + body
    return content


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _reorder(random: Random, messages: list[Message]) -> None:
    at = random.randrange(len(messages))
    if random.random() < 0.5 and len(messages) > 1:
        messages.insert(random.randrange(len(messages)), messages.pop(at))
    else:
        messages.insert(at, _copy(messages[at]))


def _change_field(random: Random, message: Any) -> None:
    """Sets, clears or repeats a field somewhere in a message."""
    if not message.DESCRIPTOR.fields:
        return
    field = random.choice(message.DESCRIPTOR.fields)
    if random.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        values = getattr(message, field.name)
        _change_field(random, values[random.choice((*values, *_TEXTS))])
    elif field.message_type is not None:
        if field.is_repeated:
            _change_field(random, getattr(message, field.name).add())
        else:
            _change_field(random, getattr(message, field.name))
    elif field.is_repeated:
        values = getattr(message, field.name)
        value = _value(random, field)
        values.extend([value] * random.choice((1, 1, 1, 70)))
    else:
        setattr(message, field.name, _value(random, field))


def _value(random: Random, field: Any) -> Any:
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            return random.choice(_TEXTS) if field.type != field.TYPE_BYTES else b"\0\xff"
        case field.CPPTYPE_BOOL:
            return random.random() < 0.5
        case field.CPPTYPE_ENUM:
            return random.randrange(-1, 8)
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e-45))
        case _:
            unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
            lowest = 0 if unsigned else -(1 << 31)
            return random.choice([one for one in NUMBERS if lowest <= one < 1 << 31])


@contextmanager
def _open(scratch: Path) -> Iterator[Execute]:
    with fuzzed_server(scratch) as server:

        def execute(content: bytes) -> None:
            number, messages = content[0], _split(content[1:])
            try:
                _call(server, number, messages)
            except grpc.RpcError as error:
                _check_refusal(error, ours=_METHODS[number][0].startswith(_OURS))
            server.incidents.check()

        for number, (_, _, _, messages) in enumerate(_METHODS):
            execute(
                bytes([number])
                + b"".join(
                    _LENGTH.pack(len(body)) + body
                    for body in (message.SerializeToString() for message in messages)
                )
            )
        assert not Refusals.count, "a good call was refused"
        yield execute
        server.check()


def _split(content: bytes) -> list[bytes]:
    messages = []
    while content:
        (length,) = _LENGTH.unpack_from(content)
        messages.append(content[_LENGTH.size : _LENGTH.size + length])
        content = content[_LENGTH.size + length :]
    return messages


def _call(server: FuzzedServer, number: int, messages: list[bytes]) -> None:
    path, streams_requests, streams_responses, _ = _METHODS[number]
    if streams_requests and streams_responses:
        stream: Any = server.channel.stream_stream(path)
        for _ in stream(iter(messages), timeout=PATIENCE_S):
            pass
    else:
        unary: Any = server.channel.unary_unary(path)
        unary(messages[0], timeout=PATIENCE_S)


def _check_refusal(error: Any, *, ours: bool) -> None:
    """Check that a refusal has a status of bad input, and says which rule was broken."""
    assert error.code() in _REFUSALS, f"{error.code()}: {error.details()}"
    assert error.details()
    Refusals.count += 1
    if not ours:
        return
    check_details(error)


TARGET = Target(
    name="rpc-bodies",
    what="messages of every RPC, to a server on a socket",
    mutate=_mutate,
    open=_open,
    test_runs=1000,
    # The server runs in this process, and what it holds is not one input's.
    memory_bytes=0,
    cpu_s=5.0,
)
