"""The service as an operator sees it: with grpcurl, by reflection alone."""

import pytest

from tests.service.grpcurl import Grpcurl

EMBEDDING = "embedgrpc.v1.EmbeddingService"


def test_services_are_listed_by_reflection(grpcurl: Grpcurl) -> None:
    """The five services, health and reflection can be found without any proto file."""
    assert grpcurl.run("list").stdout.split() == [
        "embedgrpc.v1.ClassifyService",
        EMBEDDING,
        "embedgrpc.v1.ModelService",
        "embedgrpc.v1.RerankService",
        "embedgrpc.v1.TokenizerService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


def test_methods_are_described_by_reflection(grpcurl: Grpcurl) -> None:
    """A method's request type can be read from the server."""
    described = grpcurl.run("describe", f"{EMBEDDING}.Embed").stdout
    assert "rpc Embed ( .embedgrpc.v1.EmbedRequest )" in described


def test_a_text_is_embedded(grpcurl: Grpcurl) -> None:
    """JSON in, numbers out, each vector with the dimensions that were asked for."""
    (answer,) = grpcurl.call(
        f"{EMBEDDING}/Embed", {"texts": ["hello", "world"], "options": {"dimensions": 3}}
    )
    assert [len(one["dense"]["values"]) for one in answer["embeddings"]] == [3, 3]
    assert answer["usage"] == {"input_tokens": 6}


def test_a_stream_answers_by_id(grpcurl: Grpcurl) -> None:
    """The first answer states the terms, the others carry ids; a bad text fails alone."""
    ready, *answers = grpcurl.call(
        f"{EMBEDDING}/StreamEmbed",
        {"setup": {"options": {"dimensions": 2}}},
        {"batch": {"inputs": [{"id": "a", "text": "hello"}, {"id": "b", "text": " "}]}},
        {"batch": {"inputs": [{"id": "c", "text": "world"}]}},
    )
    assert ready["ready"]["dimensions"] == 2
    results = [one for answer in answers for one in answer["results"]["results"]]
    assert [one["id"] for one in results] == ["a", "b", "c"]
    assert [set(one) - {"id"} for one in results] == [{"embedding"}, {"error"}, {"embedding"}]
    assert results[1]["error"]["reason"] == "ERROR_REASON_EMPTY_INPUT"


@pytest.mark.parametrize(
    "service",
    [
        "",
        EMBEDDING,
        "embedgrpc.v1.RerankService",
        "embedgrpc.v1.ModelService",
        f"{EMBEDDING}/all-MiniLM-L6-v2",
    ],
)
def test_health_is_checked(grpcurl: Grpcurl, service: str) -> None:
    """The process, each service and each model have a status of their own."""
    (answer,) = grpcurl.call("grpc.health.v1.Health/Check", {"service": service})
    assert answer == {"status": "SERVING"}


def test_an_error_says_which_field_is_to_blame(grpcurl: Grpcurl) -> None:
    """The status carries ErrorInfo and BadRequest, which grpcurl prints."""
    done = grpcurl.run(f"{EMBEDDING}/Embed", flags=("-d", '{"texts": ["hello", ""]}'))
    assert "Code: InvalidArgument" in done.stderr
    assert '"reason": "EMPTY_INPUT"' in done.stderr
    assert '"field": "texts[1]"' in done.stderr
