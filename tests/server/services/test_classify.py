"""Classify: scores of labels for texts and pairs, as the reference gives them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.models.runner import expected
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.loading.triton_server import serving_upstream
from tests.server.service import CROSS, EMBED, FIXTURES, PATIENCE_S, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("classify-nli", "classify-toxicity", "classify-sentiment", "classify-cross")
MAX_INPUTS = 64
FUNCTIONS = {
    "logits": classify.SCORE_FUNCTION_RAW,
    "softmax": classify.SCORE_FUNCTION_SOFTMAX,
    "sigmoid": classify.SCORE_FUNCTION_SIGMOID,
    "default": classify.SCORE_FUNCTION_UNSPECIFIED,
}
IN_MODEL_ORDER: Any = {"order": classify.LABEL_ORDER_MODEL}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with the classifiers, an embedding model and a cross-encoder."""
    classifiers = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in NAMES]
    settings = settings_for(*classifiers, EMBED, CROSS, cache_dir=cache_dir, max_inputs=MAX_INPUTS)
    async with serving(settings) as started:
        yield started


async def _ask(
    service: Service,
    model: str,
    *,
    texts: Any = (),
    pairs: Any = (),
    partial: Any = False,
    max_response_bytes: Any = 0,
    **options: Any,
) -> classify.ClassifyResponse:
    response: classify.ClassifyResponse = await service.client.classify.Classify(
        classify.ClassifyRequest(
            model=model,
            texts=texts,
            pairs=[classify.TextPair(first=first, second=second) for first, second in pairs],
            options=classify.ClassifyOptions(**options),
            allow_partial=partial,
            max_response_bytes=max_response_bytes,
        ),
        timeout=PATIENCE_S,
    )
    return response


def _scores(response: classify.ClassifyResponse) -> FloatArray:
    return np.array(
        [[one.score for one in each.labels] for each in response.classifications], np.float32
    )


@pytest.mark.parametrize("entry", FUNCTIONS)
@pytest.mark.parametrize("name", NAMES)
async def test_scores_are_those_of_the_reference(service: Service, name: str, entry: str) -> None:
    """For texts and pairs, by each function and by the model's own, over-long ones included."""
    reference = expected(name)
    for form, wanted in reference["outputs"][entry].items():
        response = await _ask(
            service,
            name,
            **{form: reference[form]},
            score_function=FUNCTIONS[entry],
            **IN_MODEL_ORDER,
        )
        assert np.abs(_scores(response) - wanted).max() <= reference["tolerance"]
        counts = [one.token_count for one in response.classifications]
        assert counts == [len(ids) for ids in reference["token_ids"][form]]
        assert response.usage.input_tokens == sum(counts)
        cut = [one.truncated for one in response.classifications]
        assert any(cut)
        assert response.usage.truncated_inputs == sum(cut)


@pytest.mark.parametrize("name", NAMES)
async def test_an_input_has_the_same_scores_alone_and_in_a_batch(
    service: Service, name: str
) -> None:
    """Within 1e-6 of the logits' size, whatever is beside it."""
    reference = expected(name)
    for form in reference["token_ids"]:
        together = await _ask(
            service,
            name,
            **{form: reference[form]},
            score_function=classify.SCORE_FUNCTION_RAW,
            **IN_MODEL_ORDER,
        )
        alone = [
            await _ask(
                service,
                name,
                **{form: [one]},
                score_function=classify.SCORE_FUNCTION_RAW,
                **IN_MODEL_ORDER,
            )
            for one in reference[form]
        ]
        gap = np.abs(_scores(together) - np.concatenate([_scores(one) for one in alone]))
        assert gap.max() <= 1e-6 * max(1, np.abs(_scores(together)).max())


async def test_labels_come_best_first(service: Service) -> None:
    """By default; with `top_k` only the best, also in the model's order."""
    texts = expected("classify-toxicity")["texts"]
    everything = await _ask(service, "classify-toxicity", texts=texts)
    in_order = await _ask(service, "classify-toxicity", texts=texts, **IN_MODEL_ORDER)
    best = await _ask(service, "classify-toxicity", texts=texts, top_k=2)
    best_in_order = await _ask(service, "classify-toxicity", texts=texts, top_k=2, **IN_MODEL_ORDER)
    labels = expected("classify-toxicity")["settings"]["labels"]
    for all_of, ordered, two, two_ordered in zip(
        everything.classifications,
        in_order.classifications,
        best.classifications,
        best_in_order.classifications,
        strict=True,
    ):
        assert [one.label for one in ordered.labels] == labels
        assert [one.index for one in ordered.labels] == list(range(len(labels)))
        scores = [one.score for one in all_of.labels]
        assert scores == sorted(scores, reverse=True)
        assert list(two.labels) == list(all_of.labels)[:2]
        assert sorted(two.labels, key=lambda one: one.index) == list(two_ordered.labels)


async def test_a_model_shows_its_labels(service: Service) -> None:
    """ListModels filters by the task, and has the labels and the function of scores."""
    request = models.ListModelsRequest(task=models.MODEL_TASK_CLASSIFY)
    listed = {one.id: one for one in (await service.client.models.ListModels(request)).models}
    assert set(listed) == {*NAMES, "cross"}
    nli = listed["classify-nli"]
    assert list(nli.tasks) == [models.MODEL_TASK_CLASSIFY]
    assert list(nli.labels) == ["entailment", "neutral", "contradiction"]
    functions = {name: listed[name].score_function for name in listed}
    assert functions == {
        "classify-nli": classify.SCORE_FUNCTION_SOFTMAX,
        "classify-toxicity": classify.SCORE_FUNCTION_SIGMOID,
        "classify-sentiment": classify.SCORE_FUNCTION_SOFTMAX,
        "classify-cross": classify.SCORE_FUNCTION_RAW,
        "cross": classify.SCORE_FUNCTION_SIGMOID,
    }
    assert list(listed["classify-sentiment"].labels) == ["LABEL_0", "LABEL_1"]
    assert list(listed["cross"].tasks) == [models.MODEL_TASK_RERANK, models.MODEL_TASK_CLASSIFY]
    everything = (await service.client.models.ListModels(models.ListModelsRequest())).models
    (embeds,) = [one for one in everything if one.id == "embed"]
    assert not embeds.labels
    assert embeds.score_function == classify.SCORE_FUNCTION_UNSPECIFIED
    response = await _ask(service, "classify-nli", texts=["a"])
    assert (response.model, response.revision) == ("classify-nli", nli.revision)
    assert response.fingerprint == nli.fingerprint


async def test_a_cross_encoder_classifies_as_it_ranks(service: Service) -> None:
    """Its one label has the score of the document."""
    response = await _ask(service, "cross", pairs=[("what is it", "a text")])
    ranking = await service.client.rerank.Rerank(
        rerank.RerankRequest(model="cross", query="what is it", documents=["a text"])
    )
    ((label,),) = [one.labels for one in response.classifications]
    assert label.label == "LABEL_0"
    assert label.score == pytest.approx(ranking.results[0].score, abs=1e-6)


async def test_long_inputs_are_cut_where_the_request_says(service: Service) -> None:
    """A pair is cut at its longer side, and each end gives other scores."""
    first, second = "a b c d e f g h " * 20, "yes and no"
    at_end = await _ask(service, "classify-nli", pairs=[(first, second)])
    at_start = await _ask(
        service, "classify-nli", pairs=[(first, second)], truncation=common.TRUNCATION_START
    )
    short = await _ask(service, "classify-nli", pairs=[(first, second)], max_tokens=20)
    assert [one.token_count for one in at_end.classifications] == [96]
    assert [one.token_count for one in short.classifications] == [20]
    assert not np.allclose(_scores(at_end), _scores(at_start), atol=1e-3)
    assert not np.allclose(_scores(at_end), _scores(short), atol=1e-3)


@pytest.mark.parametrize(
    ("request_", "field", "label"),
    [
        ({}, "texts", "NO_INPUTS"),
        ({"texts": ["a"] * (MAX_INPUTS + 1)}, "texts", "TOO_MANY_INPUTS"),
        ({"pairs": [("a", "b")] * (MAX_INPUTS + 1)}, "pairs", "TOO_MANY_INPUTS"),
        ({"texts": ["a"], "pairs": [("a", "b")]}, "pairs", None),
        ({"texts": ["a"], "top_k": -1}, "options.top_k", None),
        ({"texts": ["a"], "order": 9}, "options.order", "UNKNOWN_ENUM_VALUE"),
        ({"texts": ["a"], "score_function": 9}, "options.score_function", "UNKNOWN_ENUM_VALUE"),
        ({"texts": ["a"], "truncation": 9}, "options.truncation", "UNKNOWN_ENUM_VALUE"),
        ({"texts": ["a"], "max_tokens": -1}, "options.max_tokens", None),
        ({"texts": ["a"], "max_tokens": 2}, "options.max_tokens", None),
        ({"pairs": [("a", "b")], "max_tokens": 4}, "options.max_tokens", None),
    ],
)
async def test_wrong_requests_name_the_field(
    service: Service, request_: dict[str, Any], field: str, label: str | None
) -> None:
    """A rule of the contract that is broken is named."""
    failure = await failure_of(_ask(service, "classify-nli", **request_))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_REQUEST"
    assert failure.fields == (field,)
    assert failure.metadata.get("label") == label


@pytest.mark.parametrize(
    ("form", "inputs", "fields"),
    [
        ("texts", ["a", " ", "b", ""], ["texts[1]", "texts[3]"]),
        ("pairs", [("a", "b"), ("", "b"), ("a", " ")], ["pairs[1].first", "pairs[2].second"]),
        ("texts", ["a", "word " * 400], ["texts[1]"]),
        ("pairs", [("a", "word " * 400), ("a", "b")], ["pairs[0]"]),
        ("pairs", [("word " * 400, "a")], ["pairs[0].first"]),
    ],
)
async def test_inputs_fail_together_or_alone(
    service: Service, form: str, inputs: list[Any], fields: list[str]
) -> None:
    """Without `allow_partial` all inputs at fault are named; with it, each has its own error."""
    options: Any = {form: inputs, "truncation": common.TRUNCATION_NONE}
    failure = await failure_of(_ask(service, "classify-nli", **options))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == fields
    response = await _ask(service, "classify-nli", **options, partial=True)
    failed = [bool(one.error.code) for one in response.classifications]
    numbers = {int(field.split("[")[1].split("]")[0]) for field in fields}
    assert failed == [index in numbers for index in range(len(inputs))]
    for one in response.classifications:
        assert bool(one.labels) != bool(one.error.code)


async def test_models_of_other_tasks_are_refused_by_name(service: Service) -> None:
    """An embedding model has no labels; a classifier neither ranks nor embeds."""
    client = service.client
    for call, model in (
        (_ask(service, "embed", texts=["a"]), "embed"),
        (
            client.rerank.Rerank(
                rerank.RerankRequest(model="classify-nli", query="q", documents=["a"])
            ),
            "classify-nli",
        ),
        (
            client.embedding.Embed(embedding.EmbedRequest(model="classify-nli", texts=["a"])),
            "classify-nli",
        ),
    ):
        failure = await failure_of(call)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "UNSUPPORTED"
        assert failure.metadata["label"] == "WRONG_TASK"
        assert failure.metadata["model"] == model


async def test_a_response_that_is_too_large_is_refused(service: Service) -> None:
    """Before any work, by the labels that were asked for."""
    texts = ["a"] * MAX_INPUTS
    failure = await failure_of(
        _ask(service, "classify-toxicity", texts=texts, max_response_bytes=2048)
    )
    assert failure.metadata["label"] == "RESPONSE_TOO_LARGE"
    few = await _ask(service, "classify-toxicity", texts=texts, max_response_bytes=8192, top_k=1)
    assert few.ByteSize() <= 8192


async def test_the_service_has_a_health_of_its_own(service: Service) -> None:
    """It serves, and so does each model that has labels."""
    name = "embedgrpc.v1.ClassifyService"
    statuses = [
        await service.client.status(one)
        for one in (name, f"{name}/classify-nli", f"{name}/cross", f"{name}/embed")
    ]
    assert statuses == [1, 1, 1, 2]


async def test_a_classifier_on_triton(cache_dir: Path) -> None:
    """It has the labels of its files, and the scores of the same model in this process."""
    reference = expected("classify-sentiment")
    with serving_upstream(cache_dir, "classify-sentiment") as upstream:
        settings = settings_for(upstream.settings(id="far"), cache_dir=cache_dir)
        async with serving(settings) as service:
            response = await _ask(service, "far", texts=reference["texts"], **IN_MODEL_ORDER)
    wanted = reference["outputs"]["default"]["texts"]
    assert np.abs(_scores(response) - wanted).max() <= reference["tolerance"]
    labels = [one.label for one in response.classifications[0].labels]
    assert labels == reference["settings"]["labels"]


async def test_work_of_a_failing_model_is_isolated(cache_dir: Path) -> None:
    """A text whose logits are no numbers fails alone."""
    backend = HashBackend()

    def answer(ids: IntArray) -> FloatArray:
        return np.full(3, np.nan if len(ids) == 7 else 1, np.float32)

    backend.answer = answer
    model = ModelSettings(id="nli", source=str(FIXTURES / "classify-nli"))
    async with serving(settings_for(model, cache_dir=cache_dir), backend.open) as service:
        texts = ["a", "a b", "a b c", "a b c d", "a b c d e", "a b c d e f"]
        response = await asyncio.wait_for(
            _ask(service, "nli", texts=texts, partial=True), PATIENCE_S
        )
        failed = [one.error.reason for one in response.classifications if one.error.code]
        assert failed == [common.ERROR_REASON_NON_FINITE_OUTPUT]
