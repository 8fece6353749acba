"""Texts in, one array out: `encode`, and what belongs to it."""

import io
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest

from embedgrpc.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmptyInputError,
    EncodeError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    PermissionDeniedError,
)
from embedgrpc.client.progress_bar import ProgressBar
from embedgrpc.client.similarity import similarity
from tests.client.made_up import DIMENSIONS, vector_of
from tests.client.servicer import Refusal, Script, info, serving

_PATIENCE_S = 60.0
_GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "gone")
_TEXTS = [f"text {number}" for number in range(50)]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_number_of_texts_become_one_array(
    client: Client, script: Script, kind: type[Any]
) -> None:
    """Row by row in the order of the texts, however the results come, and after a break too."""
    script.reverse = True
    script.breaks.append((12, _GONE))
    vectors = client.encode(kind(_TEXTS))
    assert vectors.shape == (50, DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [vector_of(text) for text in _TEXTS])


def test_more_texts_than_expected_have_room(client: Client, script: Script) -> None:
    """The array of an iterable without a length grows."""
    script.max_in_flight_inputs, script.max_batch_inputs = 2000, 500
    texts = [f"text {number}" for number in range(2500)]
    vectors = client.encode((text for text in texts), batch_size=500)
    np.testing.assert_array_equal(vectors, [vector_of(text) for text in texts])


def test_one_text_becomes_one_vector(client: Client, script: Script) -> None:
    """Somebody waits for it: it travels in a call of its own."""
    np.testing.assert_array_equal(client.encode("a"), vector_of("a"))
    assert [type(call).__name__ for call in script.calls] == ["EmbedRequest"]
    with pytest.raises(EmptyInputError):
        client.encode(" ")


def test_no_texts_become_an_empty_array(client: Client) -> None:
    """It has the dimensions of the model."""
    assert client.encode([]).shape == (0, DIMENSIONS)
    assert client.encode(iter([])).shape == (0, DIMENSIONS)


def test_an_array_has_the_type_of_the_encoding(client: Client) -> None:
    """The numbers on the wire, undecoded where they are no floats."""
    assert client.encode(_TEXTS, encoding="float16").dtype == np.float32
    assert client.encode(_TEXTS, encoding="int8").dtype == np.int8
    bits = client.encode(_TEXTS, encoding="ubinary", dimensions=12)
    assert bits.dtype == np.uint8
    assert bits.shape == (50, 2)


def test_queries_and_documents_have_their_prompts(client: Client, script: Script) -> None:
    """Unless the caller names one."""
    client.encode_query("a")
    client.encode_document(["a"], dimensions=3)
    client.encode_query(["a"], prompt_name="mine")
    first, second, third = (call.options for call in script.calls)
    assert (first.WhichOneof("prompt"), first.input_type) == ("input_type", 1)
    assert (second.input_type, second.dimensions) == (2, 3)
    assert (third.WhichOneof("prompt"), third.prompt_name) == ("prompt_name", "mine")


def test_texts_that_fail_do_not_take_the_others_along(client: Client) -> None:
    """The error names them and holds the other vectors; it can be pickled."""
    texts = ["a", "fail:INPUT_TOO_LONG", "b", ""]
    with pytest.raises(EncodeError) as caught:
        client.encode(texts)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # noqa: S301 -- own
        assert str(error) == "INPUT_TOO_LONG: 2 of 4 texts failed; texts[1]: as asked"
        assert [(at, each.reason) for at, each in error.errors.items()] == [
            (1, "INPUT_TOO_LONG"),
            (3, "EMPTY_INPUT"),
        ]
        assert error.is_encoded.tolist() == [True, False, True, False]
        np.testing.assert_array_equal(error.vectors[error.is_encoded], [*map(vector_of, "ab")])
        assert np.isnan(error.vectors[1]).all()


def test_a_stream_that_ends_for_good_leaves_the_vectors_so_far(
    client: Client, script: Script
) -> None:
    """The error tells which texts have one."""
    script.breaks.extend([(12, _GONE)])
    # gRPC hides the status of a stream that ends while the client sends.
    why = "(gone|the server ended the stream while the client sent)"
    with pytest.raises(EncodeError, match=rf"ended after \d+ of 50 texts: {why}") as caught:
        client.encode(_TEXTS, reconnect_s=0)
    error = caught.value
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, ConnectionFailedError)
    done = np.flatnonzero(error.is_encoded)
    assert 0 < len(done) <= 12
    np.testing.assert_array_equal(error.vectors[done], [vector_of(_TEXTS[at]) for at in done])


def test_an_error_before_the_first_vector_is_itself(client: Client) -> None:
    """A model that is absent, a text that is none, a dict, or options that an array cannot hold."""
    with pytest.raises(ModelNotFoundError):
        client.encode(["a"], model="absent")
    with pytest.raises(TypeError, match=r"texts\[1\] is not a str but of type int"):
        client.encode(cast("Any", ["a", 1]))
    with pytest.raises(TypeError, match="texts is a dict"):
        client.encode({"id": "text"})
    with pytest.raises(TypeError, match="for token_vectors, use embed or embed_stream"):
        client.encode(["a"], token_vectors=True)


def test_progress_is_shown_when_asked_for(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line has all texts; without the option there is none."""
    client.encode(_TEXTS)
    assert capsys.readouterr().err == ""
    client.encode(_TEXTS, show_progress_bar=True)
    assert "100% [##############################] 50/50 texts" in capsys.readouterr().err
    client.encode(iter(_TEXTS), show_progress_bar=True)
    assert "50 texts" in capsys.readouterr().err


def test_a_bar_on_a_terminal_is_one_line() -> None:
    """It is drawn over itself, and ends with a new line."""
    terminal = _Terminal()
    bar = ProgressBar(200, "texts", terminal)
    bar.add(50)
    bar.add(150)
    bar.end()
    first, last = terminal.getvalue().split("\r\x1b[K")[1:]
    assert first.startswith(" 25% [#######---")
    assert last.startswith("100% [####")
    assert last.endswith("\n")
    assert "\n" not in first


def test_similarities_are_those_of_the_model(client: Client, script: Script) -> None:
    """The client asks for the function once."""
    left = np.array([[1, 0], [3, 4]], np.float32)
    scores = client.similarity(left, [[0, 2], [1, 0], [6, 8]])
    np.testing.assert_allclose(scores, [[0, 1, 0.6], [0.8, 0.6, 1]], atol=1e-6)
    assert client.similarity([1, 0], [[0, 2]]).tolist() == [[0]]
    assert client.similarity([3, 4], [3, 4], function="dot").tolist() == [[25]]
    kinds = [type(call).__name__ for call in script.calls]
    assert kinds == ["GetServerRequest", "GetModelRequest"]


def test_similarities_of_every_kind() -> None:
    """Distances have a minus sign, sign bits count as -1 and 1, and a zero vector is like none."""
    assert similarity([0, 0], [[3, 4]], "euclidean").tolist() == [[-5]]
    assert similarity([0, 0], [[3, 4]], "manhattan").tolist() == [[-7]]
    bits = np.array([[0b10101010], [0b01010101]], np.uint8)
    np.testing.assert_allclose(similarity(bits, bits), [[1, -1], [-1, 1]], atol=1e-6)
    assert similarity([[0, 0]], [[3, 4]]).tolist() == [[0]]
    with pytest.raises(ValueError, match="did you mean cosine"):
        similarity([1], [1], "cosin")
    with pytest.raises(ValueError, match="no similarity 'max_sim'"):
        similarity([1], [1], "max_sim")
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        similarity([1, 2], [1, 2, 3])


def test_any_number_of_documents_is_ranked(client: Client, script: Script) -> None:
    """Also more than a query may have; equal scores keep the order of the documents."""
    script.max_in_flight_inputs, script.max_batch_inputs = 8, 4
    documents = ["xyz"] * 20 + ["abc", "ab", "abc"]
    ranked = client.rank("abc", documents, top_k=4, return_documents=True)
    assert ranked == [
        {"corpus_id": 20, "score": 3.0, "text": "abc"},
        {"corpus_id": 22, "score": 3.0, "text": "abc"},
        {"corpus_id": 21, "score": 2.0, "text": "ab"},
        {"corpus_id": 0, "score": 0.0, "text": "xyz"},
    ]
    assert len(client.rank("abc", iter(documents))) == 23
    assert client.rank("abc", []) == client.rank("abc", documents, top_k=0) == []
    assert script.calls[0].options.priority == 1
    with pytest.raises(TypeError, match="no option 'top_n'"):
        client.rank("abc", documents, top_n=3)
    with pytest.raises(EmptyInputError):
        client.rank("fail:EMPTY_INPUT", documents)


def test_a_client_waits_for_a_server_that_starts(client_class: type[Client]) -> None:
    """Nothing listens at first."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    client = client_class(target)
    waiting = threading.Thread(target=client.wait_until_ready, args=(_PATIENCE_S,))
    waiting.start()
    with serving(target) as (servicer, _):
        servicer.script.serving = ("embedgrpc.v1.RerankService",)
        waiting.join()
    client.close()


def test_a_client_waits_for_a_model_but_not_for_ever(client: Client, script: Script) -> None:
    """The error says what the server said last; an error that a wait cannot help comes at once."""
    script.serving = ()
    with pytest.raises(DeadlineExpiredError, match=r"within 2 s: the model is unavailable"):
        client.wait_until_ready(2, model="model-0")
    with pytest.raises(DeadlineExpiredError, match=r"ClassifyService is SERVICE_UNKNOWN"):
        client.wait_until_ready(2)
    denied = Refusal(grpc.StatusCode.PERMISSION_DENIED, "no", (info("PERMISSION_DENIED"),))
    script.refusals.append(denied)
    with pytest.raises(PermissionDeniedError):
        client.wait_until_ready(_PATIENCE_S, model="model-0")


def test_a_list_that_is_too_long_names_what_takes_it(client: Client, script: Script) -> None:
    """The server refuses too many texts, the client too large a message."""
    hint = "use encode or embed_stream for any number of inputs"
    many = info("INVALID_REQUEST", label="TOO_MANY_INPUTS")
    script.refusals.append(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "has 300 items", (many,)))
    with pytest.raises(InvalidRequestError, match=f"has 300 items: {hint}"):
        client.embed(["a"] * 300)
    with pytest.raises(MessageTooLargeError, match=hint):
        client.embed(["a" * 2**21] * 3)
    with pytest.raises(MessageTooLargeError, match="use rank or rerank_stream"):
        client.rerank("a", ["a" * 2**21] * 3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://localhost:50051", r"is a URL; give 'localhost:50051'$"),
        ("https://localhost:50051/", r"is a URL; give 'localhost:50051' and tls=True"),
        ("localhost", r"has no port; give 'localhost:50051', for instance"),
        ("::1:50051", r"needs brackets"),
        ("localhost:", r"give HOST:PORT"),
        ("localhost:70000", r"ports are from 1 to 65535"),
        ("host name:1", r"give HOST:PORT"),
        ("tcp://host:1", r"give HOST:PORT|needs brackets"),
    ],
)
def test_a_target_that_is_no_address_is_refused(
    client_class: type[Client], target: str, message: str
) -> None:
    """Otherwise gRPC would look for a host of that name."""
    with pytest.raises(ValueError, match=message):
        client_class(target)


@pytest.mark.parametrize(
    "target",
    ["localhost:1", "[::1]:1", "dns:///host", "unix:/tmp/socket", "ipv4:1.2.3.4:5", "1.2.3.4:5"],
)
def test_a_target_in_a_form_of_grpc_is_taken(target: str) -> None:
    """Names of gRPC's resolvers are left to it."""
    Client(target)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_wrong_arguments_have_errors_without_names_of_classes(
    kind: type[Client] | type[AsyncClient],
) -> None:
    """They name the argument, and the one that may have been meant."""
    with pytest.raises(TypeError, match=r"has no argument 'timeout'; did you mean timeout_s\?"):
        kind(**cast("Any", {"timeout": 3}))
    with pytest.raises(TypeError, match="timeout_s is None; give seconds"):
        kind(timeout_s=cast("Any", None))
    with pytest.raises(TypeError, match="target is not a str but of type int"):
        kind(cast("Any", 50051))


def test_unknown_options_suggest_known_ones(client: Client) -> None:
    """Also the arguments beside the options."""
    with pytest.raises(TypeError, match=r"no option 'timeout'; did you mean timeout_s\?"):
        client.embed(["a"], **cast("Any", {"timeout": 3}))
    with pytest.raises(TypeError, match=r"no option 'prompt'; did you mean prompt_text\?|_name"):
        client.encode(["a"], **cast("Any", {"prompt": "x"}))


def test_metadata_may_be_a_dict(target: str, script: Script) -> None:
    """Or pairs, where a key comes twice."""
    with Client(target, metadata={"tenant": "a"}) as client:
        client.embed(["a"])
    assert ("tenant", "a") in script.metadata


def test_a_column_of_numpy_is_taken(client: Client) -> None:
    """An array of str is no str."""

    def rows() -> Iterator[str]:
        yield from _TEXTS

    vectors = client.encode(cast("Any", np.array(list(rows()))))
    np.testing.assert_array_equal(vectors, [vector_of(text) for text in _TEXTS])
