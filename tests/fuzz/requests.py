"""Arbitrary requests of every RPC, made of the contract's descriptors.

uv run python -m tests.fuzz.requests [--examples N]

A valid request is one that keeps to the limits of the contract; it may still ask for what a model
lacks. No request may give UNKNOWN or INTERNAL, for the call or for an item, and every call that
fails must have its details.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import hypothesis
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import (
    classify_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
    rerank_service_pb2,
    tokenizer_service_pb2,
)
from tests.fuzz.fuzzed_server import FuzzedServer, check_details, fuzzed_server
from tests.server.rankings import part
from tests.server.service import CROSS, EMBED, FIXTURES, PATIENCE_S

MODELS = (
    EMBED,
    CROSS,
    ModelSettings(id="hybrid", source=str(FIXTURES / "xlmr-bge-m3")),
    ModelSettings(id="qwen", source=str(FIXTURES / "qwen3-last")),
)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for module in (
        embedding_service_pb2,
        rerank_service_pb2,
        classify_service_pb2,
        model_service_pb2,
        tokenizer_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
_FAULT_CODES = {code.value[0] for code in _FAULTS}
_INPUTS_MAX = 8

_text = st.text(max_size=60) | st.sampled_from(["a text", "words " * 200, "\u4e2d\u6587" * 50])
_model = st.sampled_from(["", *(one.id for one in MODELS)])
# By the name of a field, where its type does not say what is valid.
_STRINGS: dict[str, st.SearchStrategy[str]] = {
    "model": _model,
    "prompt_name": st.sampled_from(["query", "document", "none"]),
    "page_token": st.just(""),
    "id": st.text(max_size=20),
}
_NUMBERS = {
    "dimensions": st.sampled_from([0, 1, 12, 36]),
    "max_tokens": st.sampled_from([0, 8, 40, 100_000]),
    "max_response_bytes": st.sampled_from([0, 1, 2000, 1 << 24, 1 << 62]),
    "page_size": st.integers(0, 2**31 - 1),
}


def _string(field: FieldDescriptor) -> st.SearchStrategy[str]:
    name = field.name.removeprefix("query_").removeprefix("document_")
    return _STRINGS.get(name, _text)


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return the valid values of a field, or of one entry of a repeated field."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return message_of(field.message_type)
        case FieldDescriptor.CPPTYPE_ENUM:
            numbers = [one.number for one in field.enum_type.values]
            return st.sampled_from([one for one in numbers if one or not field.is_repeated])
        case FieldDescriptor.CPPTYPE_STRING:
            return _string(field)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case _:
            return _NUMBERS.get(field.name, st.integers(0, 20))


def message_of(descriptor: Any) -> st.SearchStrategy[Message]:
    """Return the valid messages of a type."""
    made: type[Message] = GetMessageClass(descriptor)
    alone = [
        field
        for field in descriptor.fields
        if field.containing_oneof is None or field.containing_oneof.name.startswith("_")
    ]
    choices = [one.fields for one in descriptor.oneofs if not one.name.startswith("_")]

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        fields: dict[str, Any] = {}
        for field in alone:
            if field.is_repeated:
                unique = field.cpp_type == FieldDescriptor.CPPTYPE_ENUM
                least = 0 if unique else 1
                entries = st.lists(
                    _value(field), min_size=least, max_size=_INPUTS_MAX, unique=unique
                )
                fields[field.name] = draw(entries)
            elif draw(st.booleans()):
                fields[field.name] = draw(_value(field))
        for fields_of_one in choices:
            chosen = draw(st.sampled_from([None, *fields_of_one]))
            if chosen is not None:
                fields[chosen.name] = draw(_value(chosen))
        return made(**fields)

    return build()


@st.composite
def _embed_stream(draw: st.DrawFn) -> list[Message]:
    pb = embedding_service_pb2
    setup: Any = draw(message_of(pb.StreamEmbedSetup.DESCRIPTOR))
    messages: list[Message] = [pb.StreamEmbedRequest(setup=setup)]
    number = 0
    for texts in draw(st.lists(st.lists(_text, min_size=1, max_size=4), max_size=3)):
        inputs = []
        for text in texts:
            inputs.append(pb.StreamEmbedInput(id=f"{draw(_STRINGS['id'])}{number}", text=text))
            number += 1
        batch = pb.StreamEmbedBatch(inputs=inputs)
        messages.append(pb.StreamEmbedRequest(batch=batch))
    return messages


@st.composite
def _classify_stream(draw: st.DrawFn) -> list[Message]:
    pb = classify_service_pb2
    setup: Any = draw(message_of(pb.StreamClassifySetup.DESCRIPTOR))
    messages: list[Message] = [pb.StreamClassifyRequest(setup=setup)]
    number = 0
    for batch in draw(st.lists(st.lists(_text, min_size=1, max_size=4), max_size=3)):
        inputs = []
        for text in batch:
            identifier = f"{draw(_STRINGS['id'])}{number}"
            number += 1
            if draw(st.booleans()):
                pair = pb.TextPair(first=text, second=draw(_text))
                inputs.append(pb.StreamClassifyInput(id=identifier, pair=pair))
            else:
                inputs.append(pb.StreamClassifyInput(id=identifier, text=text))
        messages.append(pb.StreamClassifyRequest(batch=pb.StreamClassifyBatch(inputs=inputs)))
    return messages


@st.composite
def _rerank_stream(draw: st.DrawFn) -> list[Message]:
    pb = rerank_service_pb2
    setup: Any = draw(message_of(pb.StreamRerankSetup.DESCRIPTOR))
    messages: list[Message] = [pb.StreamRerankRequest(setup=setup)]
    for number in range(draw(st.integers(0, 3))):
        parts = draw(st.lists(st.lists(_text, min_size=1, max_size=4), min_size=1, max_size=3))
        query, identifier = draw(_text), f"{draw(_STRINGS['id'])}{number}"
        for position, documents in enumerate(parts):
            more = position + 1 < len(parts)
            messages.append(part(identifier, "" if position else query, documents, more=more))
    return messages


def valid_calls(method: MethodDescriptor) -> st.SearchStrategy[Sequence[Message]]:
    """Return the messages of valid calls of a method."""
    if not method.client_streaming:
        return message_of(method.input_type).map(lambda message: [message])
    return {
        "StreamEmbed": _embed_stream,
        "StreamClassify": _classify_stream,
        "StreamRerank": _rerank_stream,
    }[method.name]()


def _call(server: FuzzedServer, path: str, messages: Sequence[bytes]) -> None:
    """Make a call and check how it ends, and the errors of its items."""
    stream: Any = server.channel.stream_stream(path)
    response = GetMessageClass(METHODS[path].output_type)
    try:
        for data in stream(iter(messages), timeout=PATIENCE_S * 3):
            _check_items(response.FromString(data))
    except grpc.RpcError as failure:
        error: Any = failure
        assert error.code() not in _FAULTS, f"{error.code()}: {error.details()}"
        check_details(error)
    server.incidents.check()


def _check_items(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            if field.message_type.name == "ItemError":
                assert one.code not in _FAULT_CODES, one
                assert one.reason, one
            _check_items(one)


def _check(server: FuzzedServer, path: str, calls: st.SearchStrategy[Any], examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples <= FEW,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls)
    def run(messages: Sequence[bytes]) -> None:
        _call(server, path, messages)

    run()


# As many calls of each method are made in the test suite; always the same ones.
FEW = 20


def check_valid(server: FuzzedServer, path: str, examples: int) -> None:
    """Make valid calls of a method."""
    calls = valid_calls(METHODS[path])
    _check(server, path, calls.map(_serialized), examples)


def check_bytes(server: FuzzedServer, path: str, examples: int) -> None:
    """Make calls of a method whose messages are any bytes, or valid ones that are cut."""
    cut = valid_calls(METHODS[path]).map(_serialized).flatmap(_cut)
    calls = st.lists(st.binary(max_size=200), max_size=3) | cut
    _check(server, path, calls, examples)


def _serialized(messages: Sequence[Message]) -> list[bytes]:
    return [message.SerializeToString() for message in messages]


def _cut(messages: Sequence[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.integers(0, max(len(messages[-1]) - 1, 0)).map(
        lambda size: [*messages[:-1], messages[-1][:size]]
    )


CHECKS: dict[str, Callable[[FuzzedServer, str, int], None]] = {
    "valid": check_valid,
    "bytes": check_bytes,
}


def main() -> None:
    """Make many calls of every method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=1000, help="calls of a kind and a method")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, fuzzed_server(Path(scratch), *MODELS) as server:
        for path in METHODS:
            for name, check in CHECKS.items():
                check(server, path, arguments.examples)
                sys.stdout.write(f"{path}: {arguments.examples} {name}\n")
                sys.stdout.flush()
        server.check()


if __name__ == "__main__":
    main()
