"""Scores of pairs for the clients of vLLM.

Source: vLLM's score API: its protocol, and how it pairs the texts.
"""

import time
from collections.abc import Sequence
from typing import Annotated
from uuid import uuid4

import msgspec

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.words import read_truncation
from embedgrpc.server.http.dialects.answers import ScoreAnswer, ScoreItem, Usage
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route, to_json
from embedgrpc.server.http.fields import Instruction, Model, OwnLimit, Texts, Truncate, about
from embedgrpc.server.http.pair_scores import score_pairs
from embedgrpc.v1 import rerank_service_pb2

_TAG = "Cohere, Jina, vLLM"
# The keys that hold the first texts and the second ones, in different versions of vLLM.
_KEYS = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))


class ScoreRequest(msgspec.Struct):
    """The body of POST /score.

    One text is compared with each of the others; of two lists, the first with the first, and so on.
    """

    text_1: Annotated[
        str | Texts | None,
        about("The first text of each pair: one for all, or as many as text_2 has."),
    ] = None
    text_2: Annotated[str | Texts | None, about("The second text of each pair.")] = None
    queries: Annotated[str | Texts | None, about("As text_1.")] = None
    documents: Annotated[str | Texts | None, about("As text_2.")] = None
    data_1: Annotated[str | Texts | None, about("As text_1, in older versions.")] = None
    data_2: Annotated[str | Texts | None, about("As text_2, in older versions.")] = None
    model: Model = None
    truncate_prompt_tokens: OwnLimit = None
    truncate: Truncate = None
    use_activation: Annotated[
        bool | None,
        about("Whether scores pass the model's activation; if false, they are its own numbers."),
    ] = None
    activation: Annotated[bool | None, about("As use_activation, in older versions.")] = None
    instruction: Instruction = None


async def score(exchange: Exchange) -> Answer:
    """Score pairs of texts, in order.

    Raises:
        EngineError: The texts do not make pairs, or one cannot be scored.
    """
    body: ScoreRequest = exchange.body
    first, second = _read_keys(body)
    pairs = _pair(_texts_of(body, first), _texts_of(body, second), names=(first, second))
    check_count(len(pairs), limit=exchange.served.settings.max_inputs, field=second)
    single = isinstance(getattr(body, first), str) or len(getattr(body, first)) == 1

    def name(index: int, is_query: bool) -> str:  # noqa: FBT001 - as the caller has it
        if not is_query:
            return f"{second}[{index}]"
        return first if single else f"{first}[{index}]"

    found = await score_pairs(exchange, pairs, _read_options(body), name=name, model=body.model)
    return to_json(
        ScoreAnswer(
            id=f"score-{uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=found.model,
            data=[
                ScoreItem(index=index, object="score", score=value)
                for index, value in enumerate(found.scores)
            ],
            usage=Usage(prompt_tokens=found.tokens, total_tokens=found.tokens),
            fingerprint=found.fingerprint,
        )
    )


def _read_keys(body: ScoreRequest) -> tuple[str, str]:
    """Return the keys that hold the texts.

    Raises:
        InvalidRequestError: None or several do, or one is missing.
    """
    used = [pair for pair in _KEYS if any(getattr(body, key) is not None for key in pair)]
    if len(used) != 1:
        raise InvalidRequestError(
            "the body must have text_1 and text_2, or queries and documents, or data_1 and data_2",
            field="text_1",
        )
    for key in used[0]:
        if getattr(body, key) is None:
            raise InvalidRequestError(f"{key}: the body must have it", field=key)
    return used[0]


def _texts_of(body: ScoreRequest, key: str) -> Sequence[str]:
    value: str | list[str] = getattr(body, key)
    return [value] if isinstance(value, str) else value


def _pair(
    first: Sequence[str], second: Sequence[str], *, names: tuple[str, str]
) -> list[tuple[str, str]]:
    if len(first) == 1:
        return [(first[0], one) for one in second]
    if len(first) != len(second):
        raise InvalidRequestError(
            f"{names[0]} has {len(first)} texts and {names[1]} has {len(second)}; the first must"
            " have one, or both the same number",
            field=names[0],
        )
    return list(zip(first, second, strict=True))


def _read_options(body: ScoreRequest) -> rerank_service_pb2.RerankOptions:
    # -1 means the model's own limit, which holds anyway.
    if body.truncate_prompt_tokens not in {None, -1}:
        raise UnsupportedError(
            "truncate_prompt_tokens is not supported, because it counts both texts together",
            field="truncate_prompt_tokens",
        )
    is_raw = False in {body.use_activation, body.activation}
    options = rerank_service_pb2.RerankOptions(
        truncation=read_truncation(body.truncate),
        score_scale=rerank_service_pb2.SCORE_SCALE_RAW
        if is_raw
        else rerank_service_pb2.SCORE_SCALE_UNSPECIFIED,
    )
    if body.instruction is not None:
        options.instruction = body.instruction
    return options


ROUTES = tuple(
    Route(
        "POST",
        path,
        score,
        openai_error,
        "Score pairs of texts",
        _TAG,
        ScoreAnswer,
        body=ScoreRequest,
        example={
            "text_1": "How tall is the tower?",
            "text_2": ["It is red.", "The tower is 330 metres tall."],
        },
        fields={"options.": ""},
        need=Need(Service.RERANK),
    )
    for path in ("/score", "/v1/score")
)
