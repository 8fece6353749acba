"""ModelInfer, compared with embedgrpc.v1."""

from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from embedgrpc.v1 import classify_service_pb2, embedding_service_pb2, rerank_service_pb2
from tests.server.failures import failure_of
from tests.server.kserve.requests import KServe, raw_of, request_for, rows_of, tensor
from tests.server.service import PATIENCE_S, Service

pytestmark = pytest.mark.asyncio(loop_scope="package")

TEXTS = ("The café opens at nine. 東京", "a", "tea")
LONG = "word " * 400
OUTPUT = service_pb2.ModelInferRequest.InferRequestedOutputTensor


def parameter(value: Any) -> Any:
    """Return a value as clients send it."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "bool_param"),
        (int, "int64_param"),
        (float, "double_param"),
        (str, "string_param"),
    )
    kind = next(name for of, name in kinds if isinstance(value, of))
    return service_pb2.InferParameter(**{kind: value})


def parameters(**values: Any) -> dict[str, Any]:
    """Return the parameters of a request."""
    return {name: parameter(value) for name, value in values.items()}


async def expected_of(service: Service, *texts: str, model: str = "", **options: Any) -> Any:
    """Return the vectors of embedgrpc.v1."""
    asked = embedding_service_pb2.EmbedOptions(**options)
    answer = await service.client.embed(*texts, model=model, options=asked)
    return np.array([one.dense.values for one in answer.embeddings], np.float32)


@pytest.mark.parametrize("raw", [True, False])
async def test_vectors_are_those_of_embedgrpc(service: Service, kserve: KServe, raw: bool) -> None:  # noqa: FBT001 - pytest passes parameters by name
    """Bit for bit, in the form of the request, with the tokens of each text and the id."""
    response = await kserve.infer(request_for(*TEXTS, raw=raw, model_name="embed", id="call 7"))
    answer = await service.client.embed(*TEXTS, model="embed")
    assert np.array_equal(rows_of(response), await expected_of(service, *TEXTS, model="embed"))
    assert (response.model_name, response.model_version, response.id) == ("embed", "1", "call 7")
    vectors, counts = response.outputs
    assert (vectors.name, vectors.datatype) == ("embedding", "FP32")
    assert (counts.name, counts.datatype, list(counts.shape)) == ("token_count", "INT32", [3])
    if raw:
        assert not vectors.HasField("contents")
        tokens = np.frombuffer(response.raw_output_contents[1], "<i4").tolist()
    else:
        assert not response.raw_output_contents
        tokens = list(counts.contents.int_contents)
    assert tokens == [one.token_count for one in answer.embeddings]
    assert response.parameters["input_tokens"].int64_param == answer.usage.input_tokens
    assert response.parameters["fingerprint"].string_param == answer.fingerprint
    assert response.parameters["truncated_inputs"].int64_param == 0


async def test_a_shape_of_one_dimension_means_the_same(service: Service, kserve: KServe) -> None:
    """[n] and [n, 1] give the same vectors; without a name, those of the default model."""
    request = request_for(*TEXTS)
    request.inputs[0].shape[:] = [3]
    response = await kserve.infer(request)
    assert response.model_name == "embed"
    assert np.array_equal(rows_of(response), await expected_of(service, *TEXTS))


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"dimensions": 8}, {"dimensions": 8}),
        ({"normalize": False}, {"normalize": False}),
        ({"input_type": "query"}, {"input_type": "INPUT_TYPE_QUERY"}),
        ({"input_type": "passage"}, {"input_type": "INPUT_TYPE_DOCUMENT"}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"prompt_text": "find: "}, {"prompt_text": "find: "}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"truncate": "START", "max_tokens": 9}, {"truncation": "START", "max_tokens": 9}),
        ({"truncate": True, "max_tokens": 9}, {"truncation": "END", "max_tokens": 9}),
        ({"embedding_type": "float"}, {}),
        ({"priority": 2, "timeout": 60_000_000}, {}),
        ({"priority": 0, "timeout": 0}, {}),
        ({"triton_enable_empty_final_response": True}, {}),
    ],
)
async def test_parameters_are_followed(
    service: Service, kserve: KServe, given: dict[str, Any], options: dict[str, Any]
) -> None:
    """Each means what the option of the contract means."""
    if "truncation" in options:
        options = options | {"truncation": f"TRUNCATION_{options['truncation']}"}
    text = LONG + "end"
    given = {"truncate": "END"} | given
    options = {"truncation": "TRUNCATION_END"} | options
    request = request_for(text, model_name="gemma-dense", parameters=parameters(**given))
    response = await kserve.infer(request)
    expected = await expected_of(service, text, model="gemma-dense", **options)
    assert np.array_equal(rows_of(response), expected)
    assert response.parameters["truncated_inputs"].int64_param == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"dimension": 8}, "parameters has 'dimension'; the model takes truncate, dimensions"),
        ({"sequence_id": 3}, "'sequence_id': models keep no state"),
        ({"dimensions": "8"}, "parameters.dimensions must be a whole number"),
        ({"dimensions": True}, "parameters.dimensions must be a whole number"),
        ({"dimensions": 0}, "parameters.dimensions is 0; it must be 1 to"),
        ({"dimensions": 2**40}, f"parameters.dimensions is {2**40}"),
        ({"dimensions": 9999}, "parameters.dimensions is 9999; the model has 36"),
        ({"max_tokens": -1}, "parameters.max_tokens is -1"),
        ({"normalize": 1}, "parameters.normalize must be a bool"),
        ({"truncate": "MIDDLE"}, "parameters.truncate is 'MIDDLE'; it must be one of none, start"),
        ({"truncate": 1}, "parameters.truncate must be a string or a bool"),
        ({"input_type": "poem"}, "parameters.input_type is 'poem'; it must be one of query"),
        ({"input_type": "query", "prompt_name": "query"}, "prompt_name and input_type exclude"),
        ({"embedding_type": "int8"}, "parameters.embedding_type is 'int8'; it must be one of flo"),
        ({"priority": 3}, "parameters.priority is 3; models have 2 levels"),
        ({"priority": -1}, "parameters.priority is -1"),
        ({"timeout": -1}, "parameters.timeout is -1; it must not be negative"),
        ({"triton_enable_empty_final_response": 1}, "_final_response must be a bool"),
        ({"timeout": 1.5}, "parameters.timeout must be a whole number"),
    ],
)
async def test_other_parameters_are_refused_by_name(
    kserve: KServe, given: dict[str, Any], problem: str
) -> None:
    """Nothing is ignored."""
    request = request_for("a", model_name="gemma-dense", parameters=parameters(**given))
    failure = await failure_of(kserve.infer(request))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert problem in failure.details


async def test_a_parameter_without_a_value_is_refused(kserve: KServe) -> None:
    """It could mean anything."""
    request = request_for("a", parameters={"dimensions": service_pb2.InferParameter()})
    failure = await failure_of(kserve.infer(request))
    assert failure.fields == ("parameters.dimensions",)


async def test_the_timeout_shortens_the_deadline(kserve: KServe) -> None:
    """The call fails although the client would wait."""
    request = request_for("a", parameters=parameters(timeout=1))
    failure = await failure_of(kserve.infer(request))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXPIRED",
    )


async def test_outputs_come_in_the_order_asked_for(service: Service, kserve: KServe) -> None:
    """Only those, under the name of the request: NVIDIA NIM calls the vectors `embeddings`."""
    request = request_for(*TEXTS)
    request.outputs.extend([OUTPUT(name="token_count"), OUTPUT(name="embeddings")])
    response = await kserve.infer(request)
    assert [one.name for one in response.outputs] == ["token_count", "embeddings"]
    assert np.array_equal(rows_of(response, 1), await expected_of(service, *TEXTS))
    request.ClearField("outputs")
    request.outputs.append(OUTPUT(name="embedding"))
    assert len((await kserve.infer(request)).outputs) == 1


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("model", ["cross", "splade-bert"])
async def test_scores_are_those_of_embedgrpc(
    service: Service,
    kserve: KServe,
    model: str,
    shared: bool,  # noqa: FBT001 - pytest passes parameters by name
) -> None:
    """Of one query for all texts, and of a query for each; in the order of the texts."""
    queries = ["hot drinks"] if shared else ["hot drinks", "wheels", "hot drinks"]
    texts = ["a bicycle", "a bicycle has wheels", "tea is hot"]
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[tensor("text", 3), tensor("query", len(queries), 1)],
        raw_input_contents=[raw_of(texts), raw_of(queries)],
    )
    response = await kserve.infer(request)
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("score", "FP32", [3, 1])
    found = rows_of(response)[:, 0].tolist()
    for query in set(queries):
        places = [place for place in range(3) if shared or queries[place] == query]
        ranked = await service.client.rerank.Rerank(
            rerank_service_pb2.RerankRequest(
                model=model, query=query, documents=[texts[place] for place in places]
            ),
            timeout=PATIENCE_S,
        )
        for one in ranked.results:
            assert found[places[one.index]] == one.score


async def test_parameters_of_scores_are_followed(kserve: KServe) -> None:
    """The scale of the scores, as the contract has it."""
    found = {}
    for scale in ("raw", "sigmoid"):
        request = service_pb2.ModelInferRequest(
            model_name="cross",
            inputs=[tensor("query", 1), tensor("text", 1)],
            raw_input_contents=[raw_of(["tea"]), raw_of(["tea is hot"])],
            parameters=parameters(score_scale=scale, truncate="END", max_tokens=20),
        )
        found[scale] = float(rows_of(await kserve.infer(request))[0, 0])
    assert found["sigmoid"] == pytest.approx(1 / (1 + np.exp(-found["raw"])), abs=1e-6)
    request.parameters["dimensions"].int64_param = 3
    failure = await failure_of(kserve.infer(request))
    assert "parameters has 'dimensions'; the model takes truncate" in failure.details


@pytest.mark.parametrize("function", [None, "raw", "softmax", "sigmoid"])
@pytest.mark.parametrize("pairs", [True, False])
async def test_scores_of_labels_are_those_of_embedgrpc(
    service: Service,
    kserve: KServe,
    pairs: bool,  # noqa: FBT001 - pytest passes parameters by name
    function: str | None,
) -> None:
    """Of texts and of pairs, for all labels in the order of the model."""
    first, second = ["a man sleeps", "it rains"], ["a man is awake", "it is wet outside"]
    request = request_for(*first, model_name="classify-nli")
    expected = classify_service_pb2.ClassifyRequest(
        model="classify-nli", options={"order": "LABEL_ORDER_MODEL"}
    )
    if pairs:
        request.inputs.append(tensor("text_pair", 2))
        request.raw_input_contents.append(raw_of(second))
        both = zip(first, second, strict=True)
        expected.pairs.extend(
            classify_service_pb2.TextPair(first=one, second=other) for one, other in both
        )
    else:
        expected.texts.extend(first)
    if function:
        request.parameters["score_function"].string_param = function
        name = f"SCORE_FUNCTION_{function.upper()}"
        expected.options.MergeFrom(classify_service_pb2.ClassifyOptions(score_function=name))
    response = await kserve.infer(request)
    answer = await service.client.classify.Classify(expected, timeout=PATIENCE_S)
    assert response.outputs[0].name == "score"
    assert rows_of(response).tolist() == [
        [label.score for label in one.labels] for one in answer.classifications
    ]
    assert response.parameters["input_tokens"].int64_param == answer.usage.input_tokens


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        (["a", " "], None, ("text[1]",)),
        (["a", " "], ["a", "b"], ("text[1]",)),
        (["a", "b"], ["a", " "], ("text_pair[1]",)),
        (["a", "b"], ["a"], ("text_pair",)),
        (["a", LONG], ["a", "b"], ("text[1]",)),
    ],
)
async def test_bad_texts_of_a_classifier_are_named(
    kserve: KServe, first: list[str], second: list[str] | None, fields: tuple[str, ...]
) -> None:
    """By their tensors and places."""
    request = request_for(*first, model_name="classify-nli", parameters=parameters(truncate="NONE"))
    if second is not None:
        request.inputs.append(tensor("text_pair", len(second)))
        request.raw_input_contents.append(raw_of(second))
    failure = await failure_of(kserve.infer(request))
    assert failure.fields == fields
    assert fields[0] in failure.details


async def test_parameters_of_another_task_are_refused(kserve: KServe) -> None:
    """A classifier takes no dimensions; its own are checked."""
    for given, problem in (
        ({"dimensions": 3}, "parameters has 'dimensions'; the model takes truncate"),
        ({"score_function": "tanh"}, "parameters.score_function is 'tanh'; it must be one of raw"),
        ({"max_tokens": 2}, "parameters.max_tokens is 2; the model needs"),
    ):
        request = request_for("a", model_name="classify-nli", parameters=parameters(**given))
        assert problem in (await failure_of(kserve.infer(request))).details


async def test_a_query_must_belong_to_each_text(kserve: KServe) -> None:
    """Neither two queries for three texts, nor two for one."""
    for queries, texts in ((2, 3), (2, 1)):
        request = service_pb2.ModelInferRequest(
            model_name="cross",
            inputs=[tensor("query", queries), tensor("text", texts)],
            raw_input_contents=[raw_of(["q"] * queries), raw_of(["t"] * texts)],
        )
        failure = await failure_of(kserve.infer(request))
        assert failure.fields == ("query",)
        assert f"query has {queries} elements and text has {texts}" in failure.details


@pytest.mark.parametrize(
    ("queries", "texts", "fields"),
    [
        (["q", "q", "other"], ["a", "b", " "], ("text[2]",)),
        (["q", " ", "q"], ["a", "b", "c"], ("query[1]",)),
        (["q"], ["a", " ", ""], ("text[1]", "text[2]")),
        ([" "], ["a", "b", "c"], ("query[0]",)),
    ],
)
async def test_a_bad_pair_is_named(
    kserve: KServe, queries: list[str], texts: list[str], fields: tuple[str, ...]
) -> None:
    """By its place in the request, whatever was scored together."""
    request = service_pb2.ModelInferRequest(
        model_name="cross",
        inputs=[tensor("query", len(queries)), tensor("text", len(texts))],
        raw_input_contents=[raw_of(queries), raw_of(texts)],
    )
    failure = await failure_of(kserve.infer(request))
    assert (failure.reason, failure.fields) == ("EMPTY_INPUT", fields)
    assert fields[0] in failure.details


async def test_bad_texts_fail_the_call_and_are_named(kserve: KServe) -> None:
    """All of them, with the reason of each."""
    request = request_for("a", "", LONG, parameters=parameters(truncate="NONE"))
    failure = await failure_of(kserve.infer(request))
    assert failure.fields == ("text[1]", "text[2]")
    assert failure.field_reasons == ("EMPTY_INPUT", "INPUT_TOO_LONG")
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"model_name": "none"}, grpc.StatusCode.NOT_FOUND, "model_name"),
        ({"model_version": "2"}, grpc.StatusCode.NOT_FOUND, "model_version"),
        ({"model_name": "n" * 200}, grpc.StatusCode.INVALID_ARGUMENT, "model_name"),
        ({"id": "i" * 300}, grpc.StatusCode.INVALID_ARGUMENT, "id"),
    ],
)
async def test_names_are_checked(
    kserve: KServe, fields: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    """Those of the model, its version and the request."""
    failure = await failure_of(kserve.infer(request_for("a", **fields)))
    assert (failure.code, failure.fields) == (code, (field,))


async def test_metadata_apply_as_on_other_doors(kserve: KServe) -> None:
    """The work class, the request id, and the largest response."""
    call = kserve.stub.ModelInfer(
        request_for("a"),
        metadata=(("x-request-id", "r-1"), ("embedgrpc-work-class", "bulk")),
        timeout=PATIENCE_S,
    )
    await call
    assert ("x-request-id", "r-1") in tuple(await call.trailing_metadata())
    wrong = kserve.stub.ModelInfer(
        request_for("a"), metadata=(("embedgrpc-work-class", "later"),), timeout=PATIENCE_S
    )
    assert (await failure_of(wrong)).fields == ("embedgrpc-work-class",)
    small = kserve.stub.ModelInfer(
        request_for(*["a"] * 16),
        metadata=(("embedgrpc-max-response-bytes", "1024"),),
        timeout=PATIENCE_S,
    )
    assert (await failure_of(small)).label == "RESPONSE_TOO_LARGE"
