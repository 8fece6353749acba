"""Tensors that break the rules. None reaches the model."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.kserve.input_tensors import split_texts
from tests.server.failures import failure_of
from tests.server.kserve.conftest import MAX_INPUTS
from tests.server.kserve.requests import KServe, raw_of, request_for, tensor
from tests.server.kserve.test_infer import OUTPUT
from tests.server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="package")

REQUEST = service_pb2.ModelInferRequest
SECRET = "never shown"  # noqa: S105 - no password


def with_raw(data: bytes, *shape: int, **fields: Any) -> Any:
    """Return a request with a raw tensor."""
    return REQUEST(inputs=[tensor("text", *shape, **fields)], raw_input_contents=[data])


def with_contents(**contents: Any) -> Any:
    """Return a request with a typed tensor for one text."""
    values = service_pb2.InferTensorContents(**contents)
    return REQUEST(inputs=[tensor("text", 1, contents=values)])


def with_shared_memory() -> Any:
    """Return a request whose text lies in shared memory."""
    request = REQUEST(inputs=[tensor("text", 1)])
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


def with_output(name: str, parameter: str = "") -> Any:
    """Return a request for an output."""
    request = request_for("a")
    request.outputs.append(OUTPUT(name=name))
    if parameter:
        request.outputs[0].parameters[parameter].int64_param = 3
    return request


def twice(request: Any, name: str = "embedding") -> Any:
    """Return a request with another output."""
    request.outputs.append(OUTPUT(name=name))
    return request


HUGE = 2**62
CASES: dict[str, tuple[Callable[[], Any], str, str]] = {
    # Inputs.
    "none": (REQUEST, "inputs", "inputs has no text; the model takes text"),
    "unknown": (
        lambda: REQUEST(inputs=[tensor("image", 1)]),
        "inputs[0].name",
        "inputs[0] is 'image'; the model takes text",
    ),
    "twice": (
        lambda: REQUEST(inputs=[tensor("text", 1)] * 2),
        "inputs[1].name",
        "inputs[1] is 'text' again",
    ),
    "more": (
        lambda: REQUEST(inputs=[tensor("text", 1), tensor("query", 1)]),
        "inputs[1].name",
        "inputs[1] is 'query'; the model takes text",
    ),
    "query alone": (
        lambda: REQUEST(
            model_name="cross", inputs=[tensor("query", 1)], raw_input_contents=[raw_of(["a"])]
        ),
        "inputs",
        "inputs has no text; the model takes query, text",
    ),
    "shared memory": (
        with_shared_memory,
        "text.parameters",
        "the parameter 'shared_memory_region'; tensors take none: shared memory is not served",
    ),
    # Datatypes and shapes.
    "datatype": (
        lambda: with_raw(b"1234", 1, datatype="INT32"),
        "text.datatype",
        "text has the datatype 'INT32'; it must be BYTES",
    ),
    "no datatype": (lambda: with_raw(b"", 1, datatype=""), "text.datatype", "it must be BYTES"),
    "no shape": (
        lambda: with_raw(raw_of(["a"])),
        "text.shape",
        "text has the shape []; it must be [n] or [n, 1]",
    ),
    "two columns": (lambda: with_raw(raw_of(["a"] * 4), 2, 2), "text.shape", "the shape [2, 2]"),
    "one row": (lambda: with_raw(raw_of(["a"] * 2), 1, 2), "text.shape", "the shape [1, 2]"),
    "three dimensions": (lambda: with_raw(b"", 1, 1, 1), "text.shape", "text has 3 dimensions"),
    "many dimensions": (lambda: with_raw(b"", *[1] * 900), "text.shape", "text has 900 dimensions"),
    "no elements": (lambda: with_raw(b"", 0), "text", "text is empty; at least 1 is required"),
    "negative": (lambda: with_raw(b"", -1), "text.shape", "text.shape is -1"),
    "too many": (
        lambda: request_for(*["a"] * (MAX_INPUTS + 1)),
        "text",
        f"text has {MAX_INPUTS + 1} entries; the limit is {MAX_INPUTS}",
    ),
    "a huge number": (lambda: with_raw(b"", HUGE), "text", f"text has {HUGE} entries"),
    "a huge number, typed": (
        lambda: REQUEST(inputs=[tensor("text", HUGE, 1)]),
        "text",
        f"text has {HUGE} entries",
    ),
    # Raw bytes.
    "cut off in a length": (
        lambda: with_raw(raw_of(["a"]) + b"\x01\x00", 2),
        "text",
        "text has the bytes of 1 elements; its shape says 2",
    ),
    "cut off in a text": (
        lambda: with_raw(raw_of(["a", SECRET])[:-1], 2),
        "text[1]",
        f"text[1] has a length of {len(SECRET)} bytes, and {len(SECRET) - 1} are left",
    ),
    "a huge length": (
        lambda: with_raw(b"\xff" * 8, 1),
        "text[0]",
        f"text[0] has a length of {2**32 - 1} bytes, and 4 are left",
    ),
    "bytes left over": (
        lambda: with_raw(raw_of(["a", SECRET]), 1),
        "text",
        f"text has {4 + len(SECRET)} bytes behind its 1 elements",
    ),
    "raw bytes of fewer inputs": (
        lambda: REQUEST(
            model_name="cross",
            inputs=[tensor("query", 1), tensor("text", 1)],
            raw_input_contents=[raw_of(["a"])],
        ),
        "raw_input_contents",
        "raw_input_contents has 1 entries for 2 inputs",
    ),
    "raw bytes of more inputs": (
        lambda: REQUEST(inputs=[tensor("text", 1)], raw_input_contents=[raw_of(["a"])] * 3),
        "raw_input_contents",
        "raw_input_contents has 3 entries for 1 inputs",
    ),
    "both": (
        lambda: with_raw(
            raw_of(["a"]), 1, contents=service_pb2.InferTensorContents(bytes_contents=[b"a"])
        ),
        "text.contents",
        "text has contents beside raw_input_contents",
    ),
    # Typed values.
    "other contents": (
        lambda: with_contents(int64_contents=[1]),
        "text.contents",
        "text has int64_contents; the elements of BYTES stand in bytes_contents",
    ),
    "no contents": (
        lambda: REQUEST(inputs=[tensor("text", 1)]),
        "text.contents",
        "text has 0 elements in bytes_contents; its shape says 1",
    ),
    "more contents": (
        lambda: with_contents(bytes_contents=[b"a", SECRET.encode()]),
        "text.contents",
        "text has 2 elements in bytes_contents; its shape says 1",
    ),
    # UTF-8.
    "no UTF-8": (
        lambda: request_for("a", SECRET.encode() + b"\xff"),
        "text[1]",
        f"text[1] is no UTF-8: see its byte {len(SECRET)}",
    ),
    "no UTF-8, typed": (
        lambda: request_for("a", b"\xe4\xb8", raw=False),
        "text[1]",
        "text[1] is no UTF-8: see its byte 0",
    ),
    "a surrogate": (lambda: request_for(b"\xed\xa0\x80"), "text[0]", "text[0] is no UTF-8"),
    # Outputs.
    "unknown output": (
        lambda: with_output("logits"),
        "outputs[0].name",
        "outputs[0] is 'logits'; the model gives embedding, token_count",
    ),
    "output twice": (
        lambda: twice(with_output("embedding")),
        "outputs[1].name",
        "outputs[1] is 'embedding' again",
    ),
    "output by both names": (
        lambda: twice(with_output("embedding"), "embeddings"),
        "outputs[1].name",
        "outputs[1] is 'embeddings' again",
    ),
    "too many parameters": (
        lambda: request_for(
            "a", parameters={str(number): service_pb2.InferParameter() for number in range(65)}
        ),
        "parameters",
        "parameters has 65 entries; the limit is 64",
    ),
    "classification": (
        lambda: with_output("embedding", "classification"),
        "embedding.parameters",
        "embedding has the parameter 'classification'; tensors take none",
    ),
    "output in shared memory": (
        lambda: with_output("embedding", "shared_memory_region"),
        "embedding.parameters",
        "shared memory is not served",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_broken_tensor_is_refused(service: Service, kserve: KServe, case: str) -> None:
    """The error names the place and the sizes, and never shows a text."""
    make, field, problem = CASES[case]
    failure = await failure_of(kserve.infer(make()))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert failure.fields == (field,)
    assert problem in failure.details
    assert SECRET not in failure.trailing
    await service.client.embed("a plain call")


async def test_texts_of_any_bytes_are_read_whole() -> None:
    """Empty ones, and those with zeros and newlines inside."""
    texts = ["", "a\0b", "\n", "東京 🗼", "x" * 70_000]
    assert split_texts(raw_of(texts), len(texts), field="text") == texts


async def test_a_large_request_of_texts_is_read_whole(kserve: KServe) -> None:
    """It is read off the event loop, and nothing is lost."""
    texts = [f"{number} " + "tea " * 2000 for number in range(MAX_INPUTS)]
    for raw in (True, False):
        response = await kserve.infer(request_for(*texts, raw=raw))
        assert list(response.outputs[0].shape) == [MAX_INPUTS, 36]
    failure = await failure_of(kserve.infer(request_for(*texts[:-1], b"x" * 70_000 + b"\xff")))
    assert failure.fields == (f"text[{MAX_INPUTS - 1}]",)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_no_prefix_of_a_tensor_is_taken_for_another(count: int) -> None:
    """Every cut is noticed, wherever it is."""
    data = raw_of(["ab", "", "c"])
    for end in range(len(data) + 1):
        whole = (end, count) == (len(data), 3) or data[:end] == raw_of(["ab", "", "c"][:count])
        if whole:
            assert len(split_texts(data[:end], count, field="text")) == count
            continue
        with pytest.raises(InvalidRequestError):
            split_texts(data[:end], count, field="text")


async def test_many_numbers_are_refused_before_they_are_parsed(
    service: Service, kserve: KServe
) -> None:
    """A million of another type would hold up the event loop."""
    request = with_contents(fp32_contents=[1.0] * 900_000)
    failure = await failure_of(kserve.infer(request))
    assert failure.label == "TOO_MANY_FIELDS"
    await service.client.embed("a plain call")
