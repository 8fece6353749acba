"""`classify` of both clients."""

from typing import Any

import pytest

from embedgrpc.client import Classification, Client, EmptyInputError, InputTooLongError
from embedgrpc.client.classifications import decode_classifications
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.errors import BadResponseError
from embedgrpc.v1 import classify_service_pb2
from tests.client.servicer import Script, serving


def test_labels_come_with_their_scores(client: Client) -> None:
    """In the order of the inputs, with what the model read, and the best label."""
    answer = client.classify(["abc", "a longer one"])
    assert [[(one.label, one.score, one.index) for one in each.labels] for each in answer] == [
        [("short", -3.0, 1), ("long", 3.0, 0)],
        [("short", -12.0, 1), ("long", 12.0, 0)],
    ]
    assert [(one.token_count, one.truncated) for one in answer] == [(3, False), (12, True)]
    assert answer[0].best.label == "long"
    assert (answer.model, answer.revision, answer.fingerprint) == ("model-0", "r1", "f1")
    assert (len(answer), answer.input_tokens) == (2, 15)


def test_options_reach_the_server(client: Client, script: Script) -> None:
    """Texts and pairs have fields of their own; without options there are none."""
    client.classify(iter(["a"]), model="m")
    assert script.calls[-1] == classify_service_pb2.ClassifyRequest(
        model="m",
        texts=["a"],
        options=classify_service_pb2.ClassifyOptions(),
        max_response_bytes=RESPONSE_BYTES_MAX,
    )
    client.classify(
        [("a", "b"), ["c", "d"]],  # type: ignore[arg-type] # a list of two texts is a pair, too
        allow_partial=True,
        score_function="softmax",
        top_k=2,
        order="model",
        truncation="none",
        max_tokens=7,
        priority="bulk",
    )
    assert script.calls[-1] == classify_service_pb2.ClassifyRequest(
        pairs=[
            classify_service_pb2.TextPair(first="a", second="b"),
            classify_service_pb2.TextPair(first="c", second="d"),
        ],
        options=classify_service_pb2.ClassifyOptions(
            score_function="SCORE_FUNCTION_SOFTMAX",
            top_k=2,
            order="LABEL_ORDER_MODEL",
            truncation="TRUNCATION_NONE",
            max_tokens=7,
            priority="PRIORITY_BULK",
        ),
        allow_partial=True,
        max_response_bytes=RESPONSE_BYTES_MAX,
    )


def test_an_input_may_fail_alone(client: Client, script: Script) -> None:
    """Those that fail, here or at the server, keep their places and have errors."""
    large = "x" * 2**24
    answer = client.classify(["a", "fail:EMPTY_INPUT", large], allow_partial=True)
    assert [type(one.error) for one in answer] == [type(None), EmptyInputError, InputTooLongError]
    assert [bool(one.labels) for one in answer] == [True, False, False]
    with pytest.raises(EmptyInputError):
        _ = answer[1].best
    assert len(script.calls) == 1
    halves = [("a", "b"), (large[: 2**23 + 1], large[: 2**23])]
    pairs = client.classify(halves, allow_partial=True)
    assert [type(one.error) for one in pairs] == [type(None), InputTooLongError]
    assert len(script.calls) == 2
    nothing = client.classify([large], allow_partial=True)
    assert [type(one.error) for one in nothing] == [InputTooLongError]
    assert len(script.calls) == 2


def test_a_limit_that_the_server_reports_is_learned(client_class: type[Client]) -> None:
    """The input that is too large for the server's core fails alone."""
    with serving(max_request_bytes=4096) as (_, target):
        client = client_class(target, timeout_s=30)
        answer = client.classify([("a", "b"), ("c", "x" * 5000)], allow_partial=True)
        assert [type(one.error) for one in answer] == [type(None), InputTooLongError]
        client.close()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "inputs is one str; give a list of texts or pairs"),
        ([1], r"inputs\[0\] is neither a text nor a pair of texts"),
        ([("a", "b", "c")], r"inputs\[0\] is neither a text nor a pair of texts"),
        ([("a", 1)], r"inputs\[0\]\[1\] is not a str but of type int"),
        (["a", ("b", "c")], r"inputs\[1\] is of another form than those before"),
        ([("b", "c"), "a"], r"inputs\[1\] is of another form than those before"),
    ],
)
def test_wrong_inputs_are_refused(
    client: Client, script: Script, inputs: Any, message: str
) -> None:
    """A list has texts or pairs, and nothing else."""
    with pytest.raises(TypeError, match=message):
        client.classify(inputs)
    with pytest.raises(ValueError, match=r"inputs\[0\]\[0\] has a lone surrogate"):
        client.classify([("\ud800", "a")])
    with pytest.raises(TypeError, match="no option 'topk'; did you mean top_k"):
        client.classify(["a"], topk=1)  # type: ignore[call-arg] # on purpose
    assert script.calls == []


def test_a_response_that_does_not_fit_is_refused() -> None:
    """Fewer classifications than inputs are an error of the server."""
    response = classify_service_pb2.ClassifyResponse(
        classifications=[classify_service_pb2.Classification(token_count=1)]
    )
    with pytest.raises(BadResponseError, match="1 classifications came back for 2 inputs"):
        decode_classifications(response, [0, 1], {})


def test_a_classification_can_be_made_by_hand() -> None:
    """Its fields have defaults, for tests of callers."""
    assert Classification().error is None
