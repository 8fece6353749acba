import pickle
import socket
from typing import get_args

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from embedgrpc import client as package
from embedgrpc.client import Client, enums, errors
from embedgrpc.client.attempts import RetryBudget
from embedgrpc.client.status_errors import error_of_call, error_of_item
from embedgrpc.v1 import (
    classify_service_pb2,
    common_pb2,
    embedding_service_pb2,
    model_service_pb2,
    rerank_service_pb2,
)
from tests.client.servicer import Refusal, Script, info, serving

REASONS = [name.removeprefix("ERROR_REASON_") for name in common_pb2.ErrorReason.keys()[1:]]


def test_there_is_a_class_for_each_reason_of_the_contract() -> None:
    """Each reason has one class, each class one reason, and all classes are public."""
    assert sorted(errors.ERRORS_BY_REASON) == sorted(REASONS)
    leaves = set(errors.EmbedGrpcError.__subclasses__())
    without_reason = {
        errors.ConnectionFailedError,
        errors.BadResponseError,
        errors.MessageTooLargeError,
        errors.ModelChangedError,
        errors.EncodeError,
    }
    assert leaves - set(errors.ERRORS_BY_REASON.values()) == without_reason
    for error in leaves:
        assert error.__name__ in package.__all__
        assert error.__name__ in str(errors.__doc__)


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_of_the_contract_has_the_status_it_documents(reason: str) -> None:
    """The table in the docstring agrees with the classes."""
    error = errors.ERRORS_BY_REASON[reason]
    (line,) = [line for line in str(errors.__doc__).splitlines() if error.__name__ in line]
    assert line.split()[1:3] == [error.code.name, reason + "," * line.count(reason + ",")]


def test_names_of_enum_values_are_those_of_the_contract() -> None:
    """The literal types for callers list exactly the values of the enums."""
    for names, enum in [
        (enums.Encoding, embedding_service_pb2.VectorEncoding),
        (enums.InputType, common_pb2.InputType),
        (enums.LabelOrder, classify_service_pb2.LabelOrder),
        (enums.Representation, embedding_service_pb2.Representation),
        (enums.ResultOrder, embedding_service_pb2.ResultOrder),
        (enums.ScoreFunction, classify_service_pb2.ScoreFunction),
        (enums.ScoreScale, rerank_service_pb2.ScoreScale),
        (enums.Task, model_service_pb2.ModelTask),
        (enums.Truncation, common_pb2.Truncation),
    ]:
        known = [enums.enum_name(enum, number) for number in enum.values()[1:]]
        assert sorted(get_args(names)) == sorted(known)
        assert enums.enum_name(enum, 99) == "99"


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_becomes_its_error(client: Client, script: Script, reason: str) -> None:
    """Code, reason, message and metadata are the server's."""
    expected = errors.ERRORS_BY_REASON[reason]
    script.refusals.extend(
        [Refusal(expected.code, "why", (info(reason, limit="512"),), pushback_ms="-1")]
    )
    with pytest.raises(expected) as caught:
        client.embed(["a"])
    error = caught.value
    assert type(error) is expected
    assert (error.code, error.reason, error.message) == (expected.code, reason, "why")
    assert error.metadata == {"limit": "512"}
    assert str(error) == f"{reason}: why"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_details_of_an_error_are_read(client: Client, script: Script) -> None:
    """The error has field violations and retry delay, in whatever order they arrive."""
    violation = error_details_pb2.BadRequest.FieldViolation(field="texts[3]", description="empty")
    script.refusals.append(
        Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "bad",
            (
                error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
                error_details_pb2.BadRequest(field_violations=[violation]),
                info("INVALID_REQUEST"),
            ),
        )
    )
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.rerank("q", ["d"])
    assert caught.value.field_violations == (errors.FieldViolation("texts[3]", "empty", ""),)
    assert caught.value.retry_delay_s == 1.5
    assert vars(pickle.loads(pickle.dumps(caught.value))) == vars(caught.value)  # noqa: S301 -- from this test


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.UnsupportedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.OverloadedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExpiredError),
        (grpc.StatusCode.UNAVAILABLE, errors.BackendUnavailableError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.ABORTED, errors.EmbedGrpcError),
    ],
)
def test_an_unknown_reason_has_the_class_of_its_status(
    client: Client, script: Script, code: grpc.StatusCode, expected: type[errors.EmbedGrpcError]
) -> None:
    """Reason and label are kept, of calls and of items."""
    details = (info("NEW", label="NEWER"),)
    script.refusals.append(Refusal(code, "n", details, pushback_ms="-1"))
    with pytest.raises(expected) as caught:
        client.embed(["a"])
    assert type(caught.value) is expected
    assert (caught.value.reason, caught.value.label) == ("NEW", "NEWER")
    item = common_pb2.ItemError(code=code.value[0], reason=99, message="n")  # type: ignore[arg-type] # a newer server's
    assert type(error_of_item(item)) is expected
    assert error_of_item(item).reason == "99"


def test_a_reason_of_a_newer_server_is_kept(client: Client, script: Script) -> None:
    """An unknown reason makes an `EmbedGrpcError`; one of another domain is ignored."""
    foreign = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="example.com")
    code = grpc.StatusCode.ABORTED
    script.refusals.extend([Refusal(code, "n", (info("NEW"),)), Refusal(code, "f", (foreign,))])
    with pytest.raises(errors.EmbedGrpcError, match="NEW: n") as caught:
        client.health()
    assert type(caught.value) is errors.EmbedGrpcError
    with pytest.raises(errors.EmbedGrpcError, match="ABORTED: f") as caught:
        client.health()
    assert caught.value.reason == ""


def test_no_server_is_a_failed_connection(client_class: type[Client]) -> None:
    """UNAVAILABLE without a reason of the contract is a `ConnectionFailedError`."""
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        client = client_class(f"127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(errors.ConnectionFailedError) as caught:
            client.health()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
        stream = client.embed_stream(["a"])
        with pytest.raises(errors.ConnectionFailedError):
            next(stream)
        client.close()


def test_a_deadline_that_passes_here_is_a_deadline_error(client_class: type[Client]) -> None:
    """DEADLINE_EXCEEDED without a reason is a `DeadlineExpiredError` too."""
    with socket.socket() as silent:  # accepts connections and never speaks
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = client_class(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1)
        with pytest.raises(errors.DeadlineExpiredError) as caught:
            client.embed(["a"])
        assert caught.value.reason == ""
        client.close()


@pytest.mark.parametrize("name", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"])
def test_a_busy_server_is_tried_three_times(client: Client, script: Script, name: str) -> None:
    """The retry policy of the channel makes three attempts."""
    code = grpc.StatusCode[name]
    script.refusals.extend([Refusal(code, pushback_ms="1")] * 5)
    with pytest.raises(errors.EmbedGrpcError) as caught:
        client.embed(["a"])
    assert caught.value.code is code
    assert len(script.calls) == 3


def test_a_retry_that_succeeds_is_not_noticed(client: Client, script: Script) -> None:
    """The third attempt succeeds after two errors with pushback, also for large requests."""
    script.refusals.extend([Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms="1")] * 2)
    assert len(client.embed(["a" * 2**20])) == 1
    assert len(script.calls) == 3


@pytest.mark.parametrize("field", ["RetryInfo", "pushback", "neither"])
def test_an_overloaded_server_is_tried_three_times(
    client: Client, script: Script, field: str
) -> None:
    """The client waits as the server says, or a little where it does not."""
    details = (info("OVERLOADED"),)
    delay = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1_000_000))
    refusal = Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "full",
        (*details, delay) if field == "RetryInfo" else details,
        pushback_ms="1" if field == "pushback" else None,
    )
    script.refusals.extend([refusal] * 3)
    with pytest.raises(errors.OverloadedError, match="full"):
        client.embed(["a"])
    assert len(script.calls) == 3


def test_a_retry_that_comes_too_late_is_not_made(client: Client, script: Script) -> None:
    """The error is raised at once if the server asks for more time than the call has."""
    details = (info("OVERLOADED"),)
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details, pushback_ms="60000")
    script.refusals.append(refusal)
    with pytest.raises(errors.OverloadedError):
        client.embed(["a"], timeout_s=30)
    assert len(script.calls) == 1


def test_few_retries_are_made_while_most_calls_fail() -> None:
    """Half of the tokens are for retries; successes bring them back slowly."""
    budget = RetryBudget()
    allowed = [budget.add_failure() for _ in range(200)]
    assert allowed == [True] * 49 + [False] * 151
    for _ in range(1000):
        budget.add_success()
    assert budget.add_failure()


def test_a_message_that_is_too_large_is_sent_once(client_class: type[Client]) -> None:
    """GRPC's core answers with the status of an overload; the client does not send it again."""
    with serving(max_request_bytes=4096) as (servicer, target):
        client = client_class(target, timeout_s=30)
        with pytest.raises(errors.InputTooLongError, match=r"texts\[1\] has 5000 bytes") as caught:
            client.embed(["a", "x" * 5000])
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        assert servicer.script.attempts == ["Embed"]
        with pytest.raises(errors.InputTooLongError, match=r"texts\[0\] has 5000 bytes"):
            client.tokenize(["x" * 5000])
        with pytest.raises(errors.MessageTooLargeError, match="send fewer texts"):
            client.count_tokens(["x" * 3000] * 2)
        assert servicer.script.attempts == ["Embed"]
        client.close()


def test_a_response_that_is_too_large_is_asked_for_once(client: Client, script: Script) -> None:
    """The client's own core refuses it with the same status."""
    with pytest.raises(errors.MessageTooLargeError, match="this client accepts 16777216"):
        client.embed(["x"], dimensions=5_000_000)
    assert script.attempts == ["Embed"]


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 8)"),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "of another kind"),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms="-1"),
        Refusal(grpc.StatusCode.INVALID_ARGUMENT),
        Refusal(grpc.StatusCode.INTERNAL),
    ],
)
def test_what_cannot_help_is_not_retried(client: Client, script: Script, refusal: Refusal) -> None:
    """A server that forbids retries, and an error of the request, get one attempt."""
    script.refusals.extend([refusal] * 3)
    with pytest.raises(errors.EmbedGrpcError):
        client.embed(["a"])
    assert len(script.calls) == 1


def test_a_status_that_grpc_lost_is_a_broken_connection() -> None:
    """grpc.aio loses the status when it sends a message while the stream ends."""
    nothing = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, nothing, nothing, details="Internal error from Core"
    )
    assert type(error_of_call(lost)) is errors.ConnectionFailedError
    other = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details="incident 7")
    assert type(error_of_call(other)) is errors.EmbedGrpcError
