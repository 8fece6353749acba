import datetime as dt
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedgrpc.client import AsyncClient, BadResponseError, Client, HealthStatus
from embedgrpc.client.client_api import ClientApi
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.options import EmbedOptions
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2, tokenizer_service_pb2
from tests.client.made_up import DIMENSIONS, VOCABULARY, vector_of
from tests.client.servicer import Script, serving

TEXTS = ["a tower", "long river", "héé 塔"]


def test_embed_returns_the_vectors_in_the_order_of_the_texts(client: Client) -> None:
    """Row i of `vectors`, `token_counts` and `truncated` is that of text i."""
    result = client.embed(TEXTS)
    np.testing.assert_array_equal(result.vectors, [vector_of(text) for text in TEXTS])
    assert result.vectors.dtype == np.float32
    assert result.token_counts.tolist() == [7, 10, 5]
    assert result.token_counts.dtype == np.int32
    assert result.truncated.tolist() == [False, True, False]
    assert (result.model, result.revision, result.fingerprint) == ("model-0", "r1", "f1")
    assert result.input_tokens == 22


def test_embeddings_are_an_array(client: Client) -> None:
    """numpy, len and indices work on the vectors themselves, which are writable."""
    result = client.embed(TEXTS)
    array = np.asarray(result)
    assert np.shares_memory(array, result.vectors)
    assert not np.shares_memory(np.array(result), result.vectors)
    assert np.asarray(result, np.float64).dtype == np.float64
    assert len(result) == 3
    np.testing.assert_array_equal(result[1], vector_of(TEXTS[1]))
    array /= 2
    np.testing.assert_array_equal(result[0], vector_of(TEXTS[0]) / 2)


@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16"])
def test_floating_point_encodings_become_float32(client: Client, encoding: str) -> None:
    """The caller gets float32, whatever the width on the wire."""
    options: EmbedOptions = {"encoding": encoding}  # type: ignore[typeddict-item] # parametrised
    result = client.embed(TEXTS, **options)
    np.testing.assert_array_equal(result.vectors, [vector_of(text) for text in TEXTS])
    assert result.vectors.dtype == np.float32
    assert result.scales is None
    assert result.encoding == encoding
    np.testing.assert_array_equal(result.to_float32(), result.vectors)


def test_int8_comes_raw_with_its_scales(client: Client) -> None:
    """int8 vectors stay int8; the scales restore the numbers."""
    result = client.embed(TEXTS, encoding="int8")
    raw = np.floor([vector_of(text) for text in TEXTS])
    np.testing.assert_array_equal(result.vectors, raw)
    assert result.vectors.dtype == np.int8
    np.testing.assert_array_equal(result.scales, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(result.to_float32(), raw / 2)


def test_ubinary_comes_as_packed_bits(client: Client) -> None:
    """Sign bits arrive as numpy packs them, and `to_float32` refuses them."""
    result = client.embed(TEXTS, encoding="ubinary")
    signs = np.array([vector_of(text) > 0 for text in TEXTS])
    assert result.vectors.shape == (3, (DIMENSIONS + 7) // 8)
    assert result.dimensions == DIMENSIONS
    unpacked = np.unpackbits(result.vectors.view(np.uint8), axis=1, count=result.dimensions)
    np.testing.assert_array_equal(unpacked, signs)
    with pytest.raises(ValueError, match="signs"):
        result.to_float32()


def test_sparse_and_multi_vectors_are_decoded(client: Client) -> None:
    """The result has every representation that the call asked for, and no other."""
    result = client.embed(TEXTS, representations=["sparse", "multi_vector"])
    assert result.vectors.shape == (3, 0)
    terms = sorted(set(TEXTS[2].encode()))
    assert result.sparse[2].indices.tolist() == terms
    assert result.sparse[2].values.tolist() == [term / 2 for term in terms]
    assert result.sparse[2].dimensions == VOCABULARY
    expected = [vector_of("a"), vector_of("tower")]
    np.testing.assert_array_equal(result.multi_vectors[0].values, expected)
    assert result.multi_vectors[0].scales is None
    dense_only = client.embed(TEXTS)
    assert (dense_only.sparse, dense_only.multi_vectors) == ((), ())


def test_int8_multi_vectors_have_a_scale_for_each_row(client: Client) -> None:
    """Each row of an int8 multi-vector has its own scale."""
    (rows,) = client.embed(
        ["a tower"], representations=["multi_vector"], encoding="int8"
    ).multi_vectors
    assert rows.values.dtype == np.int8
    assert rows.scales is not None
    assert rows.scales.tolist() == [1.0, 2.0]


def test_options_reach_the_server(client: Client, script: Script) -> None:
    """Each option sets its field; the fields of other options stay unset."""
    client.embed(["x"])
    assert script.calls[-1].options == pb.EmbedOptions(encoding="VECTOR_ENCODING_FLOAT32")
    client.embed(
        ["x"],
        model="m",
        prompt_text="",
        dimensions=5,
        normalize=False,
        truncation="none",
        max_tokens=9,
        representations=["dense", "sparse"],
        max_sparse_terms=3,
        priority="bulk",
    )
    assert script.calls[-1] == pb.EmbedRequest(
        model="m",
        texts=["x"],
        options=pb.EmbedOptions(
            prompt_text="",
            dimensions=5,
            normalize=False,
            encoding="VECTOR_ENCODING_FLOAT32",
            truncation="TRUNCATION_NONE",
            max_tokens=9,
            representations=["REPRESENTATION_DENSE", "REPRESENTATION_SPARSE"],
            max_sparse_terms=3,
            priority="PRIORITY_BULK",
        ),
        max_response_bytes=RESPONSE_BYTES_MAX,
    )
    client.embed(["x"], input_type="query")
    assert script.calls[-1].options.input_type == 1
    assert script.calls[-1].options.WhichOneof("prompt") == "input_type"


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["ok", "\ud800 secret"], r"texts\[1\] has a lone surrogate at character 0")],
)
def test_a_lone_surrogate_is_refused_before_sending(
    client: Client, script: Script, texts: list[str], message: str
) -> None:
    """The error names the text without quoting it, and the client makes no call."""
    with pytest.raises(ValueError, match=message) as caught:
        client.embed(texts)
    assert "secret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match=r"documents\[1\]"):
        client.rerank("q", texts)
    with pytest.raises(ValueError, match="query has"):
        client.rerank(texts[1], ["a"])
    assert script.calls == []


def test_wrong_arguments_are_refused_before_sending(client: Client, script: Script) -> None:
    """The client checks types and names, and its error names the argument."""
    with pytest.raises(TypeError, match="texts is one str"):
        client.embed("abc")
    with pytest.raises(TypeError, match="inputs is one str"):
        client.embed_stream("abc")
    with pytest.raises(TypeError, match=r"texts\[0\] is not a str but of type NoneType"):
        client.embed([None])  # type: ignore[list-item] # on purpose
    with pytest.raises(TypeError, match="no option 'dimension'; did you mean dimensions"):
        client.embed(["a"], dimension=3)  # type: ignore[call-overload] # on purpose
    with pytest.raises(ValueError, match="no value 'float64'; did you mean float16"):
        client.embed(["a"], encoding="float64")  # type: ignore[call-overload] # on purpose
    with pytest.raises(ValueError, match=r"VectorEncoding .* float32, float16, bfloat16"):
        client.embed(["a"], encoding="unspecified")  # type: ignore[call-overload] # on purpose
    with pytest.raises(ValueError, match="only one of"):
        client.embed(["a"], input_type="query", prompt_text="")
    with pytest.raises(TypeError, match="no option 'top'; did you mean top_n"):
        client.rerank("a", ["b"], top=3)  # type: ignore[call-arg] # on purpose
    with pytest.raises(ValueError, match="timeout_s is 0"):
        client.embed(["a"], timeout_s=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        client.embed_stream(["a"], batch_size=0)
    assert script.calls == []


def test_both_clients_are_documented() -> None:
    """`help()` shows the same text for a method of either client."""
    names = [name for name in vars(ClientApi) if not name.startswith("_")]
    assert len(names) == 16
    for name in names:
        documentation = inspect.getdoc(getattr(Client, name))
        assert documentation
        assert inspect.getdoc(getattr(AsyncClient, name)) == documentation


def test_rerank_returns_the_best_first(client: Client) -> None:
    """Results have position and score, and the document if the call asks for it."""
    ranking = client.rerank("abc", ["xyz", "abc", "ab"], top_n=2, return_documents=True)
    assert [(each.index, each.score, each.document) for each in ranking] == [
        (1, 3.0, "abc"),
        (2, 2.0, "ab"),
    ]
    assert (len(ranking), ranking[0].index, ranking.model) == (2, 1, "model-0")


def test_rerank_options_reach_the_server(client: Client, script: Script) -> None:
    """Each option sets its field; a prompt of the query excludes an instruction."""
    client.rerank(
        "q",
        ["d"],
        score_scale="sigmoid",
        max_tokens=4,
        instruction="i",
        document_input_type="document",
        priority="bulk",
    )
    assert script.calls[-1] == rerank_service_pb2.RerankRequest(
        query="q",
        documents=["d"],
        options={
            "score_scale": "SCORE_SCALE_SIGMOID",
            "max_tokens": 4,
            "instruction": "i",
            "document_input_type": "INPUT_TYPE_DOCUMENT",
            "priority": "PRIORITY_BULK",
        },
        max_response_bytes=RESPONSE_BYTES_MAX,
    )
    client.rerank("q", ["d"], query_prompt_name="n", document_prompt_text="")
    options = script.calls[-1].options
    assert (options.query_prompt_name, options.WhichOneof("document_prompt")) == (
        "n",
        "document_prompt_text",
    )
    with pytest.raises(ValueError, match="only one of query_input_type"):
        client.rerank("q", ["d"], query_input_type="query", instruction="i")
    with pytest.raises(ValueError, match="Priority has no value 'urgent'"):
        client.embed(["a"], priority="urgent")  # type: ignore[call-overload] # on purpose


def test_tokens_and_their_places_are_decoded(client: Client, script: Script) -> None:
    """Every list is an array; places are in characters and in bytes."""
    empty, text = client.tokenize(["", "hé"], prompt_text="p", omit_special_tokens=True)
    assert (len(empty), empty.special.tolist()) == (1, [True])
    assert text.tokens == ("[CLS]", "h", "é")
    assert text.ids.tolist() == [1, 104, 233]
    assert text.ids.dtype == np.int32
    assert (text.character_starts.tolist(), text.character_ends.tolist()) == ([0, 0, 1], [0, 1, 2])
    assert (text.byte_starts.tolist(), text.byte_ends.tolist()) == ([0, 0, 1], [0, 1, 3])
    assert text.of_prompt.tolist() == [False] * 3
    assert script.calls[0] == tokenizer_service_pb2.TokenizeRequest(
        texts=["", "hé"],
        options={"prompt_text": "p", "omit_special_tokens": True},
        max_response_bytes=RESPONSE_BYTES_MAX,
    )


def test_tokens_are_counted(client: Client, script: Script) -> None:
    """The result has the count of each text and the limit of the model."""
    counts = client.count_tokens(["", "abc"], model="m", input_type="query")
    assert counts.token_counts.tolist() == [1, 4]
    assert (len(counts), counts.total_tokens, counts.max_tokens) == (2, 5, 512)
    assert script.calls[0].options.input_type == 1


def test_the_server_is_described(client: Client) -> None:
    """Versions, times and limits are Python's own types."""
    server = client.get_server()
    assert (server.version, server.contract_version) == ("1.2.3", "1.0")
    assert server.default_model == "model-0"
    assert server.start_time == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert server.uptime_s == 1.5
    assert (server.limits.max_inputs, server.limits.max_unary_s) == (100, 2.5)


@pytest.mark.parametrize("tokens", [itertools.repeat("1"), itertools.cycle("12")])
def test_pages_that_go_in_circles_are_an_error(
    client: Client, script: Script, tokens: Iterator[str]
) -> None:
    """A page that names itself or an earlier page as the next one is an error."""
    script.page_tokens = tokens
    with pytest.raises(BadResponseError, match="names an earlier page"):
        client.list_models()
    assert len(script.calls) <= 3


def test_pages_without_an_end_are_an_error(client: Client, script: Script) -> None:
    """A server that always has another page is an error, and the list stays bounded."""
    script.page_tokens, script.model_count = map(str, itertools.count(1)), 0
    with pytest.raises(BadResponseError, match="more than 1000 pages"):
        client.list_models()
    assert len(script.calls) == 1000


def test_list_models_follows_the_pages(client: Client, script: Script) -> None:
    """The result has all models of all pages, in order."""
    models = client.list_models("embed")
    assert [model.id for model in models] == [f"model-{number}" for number in range(5)]
    assert [call.page_token for call in script.calls] == ["", "2", "4"]
    assert {call.task for call in script.calls} == {1}


def test_models_are_described_in_short_names(client: Client) -> None:
    """Values of enums are the names that options take."""
    model = client.get_model("any")
    assert model.id == "any"
    assert (model.tasks, model.representations) == (("embed",), ("dense", "multi_vector"))
    assert (model.similarity, model.backend, model.state) == (
        "cosine",
        "onnx_runtime",
        "unavailable",
    )
    assert (model.rerank_method, model.default_truncation) == ("", "end")
    assert model.prompts == {"query": "query: "}
    assert (model.max_tokens, model.max_query_tokens) == (512, 64)
    assert (model.languages, model.takes_instruction) == (("en", "de"), True)
    assert (model.limits.max_inputs, model.limits.max_text_characters) == (100, 1000)
    assert model.limits.max_unary_s == 2.5


@pytest.mark.parametrize(
    ("service", "status"),
    [("", "SERVING"), ("stopping", "NOT_SERVING"), ("other", "SERVICE_UNKNOWN")],
)
def test_health_is_told_for_every_service(client: Client, service: str, status: str) -> None:
    """A service that the server does not have is a status, not an error."""
    assert client.health(service) is HealthStatus(status)


def test_metadata_goes_with_every_call(
    client_class: type[Client], target: str, script: Script
) -> None:
    """Unary calls and streams carry the client's metadata."""
    client = client_class(target, metadata=[("x-tenant", "t1")])
    client.health()
    assert ("x-tenant", "t1") in script.metadata
    script.metadata = []
    list(client.embed_stream(["a"]))
    assert ("x-tenant", "t1") in script.metadata
    client.close()


def test_a_unix_socket_is_a_target(client_class: type[Client], tmp_path: Path) -> None:
    """`unix:PATH` works like HOST:PORT."""
    with serving(f"unix:{tmp_path}/socket") as (_, target):
        client = client_class(target)
        assert client.health() is HealthStatus.SERVING
        client.close()


def test_answers_larger_than_grpc_s_default_arrive(client: Client) -> None:
    """A response of 8 MB is within the client's limit."""
    result = client.embed(["x", "y"], dimensions=1_000_000)
    assert result.vectors.shape == (2, 1_000_000)
