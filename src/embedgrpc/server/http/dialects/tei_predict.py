"""Classification in the HTTP API of text-embeddings-inference, and the route for any model."""

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from embedgrpc.engine.errors import EngineError, InvalidRequestError
from embedgrpc.server.caller import Need, Service, current_caller
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.http.dialects.answers import Prediction, RankedText
from embedgrpc.server.http.dialects.tei import (
    TAG,
    EmbedRequest,
    as_truncation,
    default_model,
    embed_body,
    tei_error,
)
from embedgrpc.server.http.dialects.tei_rerank import RerankRequest, rank_texts
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import (
    INPUTS,
    AnyTokenId,
    Dimensions,
    Pair,
    PromptName,
    RawScores,
    TeiNormalize,
    TeiTruncate,
    TruncationDirection,
    about,
)
from embedgrpc.server.http.work import classify
from embedgrpc.server.services.classify_batch import ClassifiedBatch
from embedgrpc.server.tei.rules import choose_function
from embedgrpc.v1 import classify_service_pb2

Body = TypeVar("Body", bound=msgspec.Struct)

_PAIR = 2
_PLACE = re.compile(r"(?:texts|pairs)\[(?P<input>\d+)\](?:\.(?P<member>first|second))?")
_MEMBERS = {"first": "[0]", "second": "[1]"}


class PredictRequest(msgspec.Struct):
    """The body of POST /predict.

    `inputs` is a text; or a list of one text, or of the two of a pair; or a list of such lists.
    """

    inputs: Annotated[
        str | Annotated[list[str | Pair], INPUTS],
        about("A text; a list of one text, or of the two of a pair; or a list of such lists."),
    ]
    raw_scores: RawScores = None
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None


class RootRequest(msgspec.Struct):
    """The body of POST / with `inputs`: that of POST /predict for a classifier, else of /embed."""

    inputs: Annotated[
        str | Annotated[list[str | AnyTokenId | list[str | AnyTokenId]], INPUTS],
        about("For a classifier, what /predict takes; else a text, or a list of texts."),
    ]
    raw_scores: RawScores = None
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None
    prompt_name: PromptName = None
    normalize: TeiNormalize = None
    dimensions: Dimensions = None


async def predict(exchange: Exchange) -> Answer:
    """Score the labels of the inputs, the best label first."""
    return await predict_body(exchange, exchange.body)


async def predict_body(exchange: Exchange, body: PredictRequest) -> Answer:
    """Score the labels of the inputs of a body.

    The answer is a list of labels for one input, and a list of such lists for several.

    Raises:
        EngineError: An input is wrong, or cannot be classified.
    """
    inputs, is_batch = _read_inputs(body.inputs)
    check_count(len(inputs), limit=exchange.served.settings.max_inputs, field="inputs")
    options = classify_service_pb2.ClassifyOptions(
        truncation=as_truncation(body.truncate, body.truncation_direction),
        score_function=_function(exchange, raw=bool(body.raw_scores)),
    )
    call = exchange.begin()
    found: dict[int, bytes] = {}
    for size in (1, _PAIR):
        indices = [index for index, one in enumerate(inputs) if len(one) == size]
        if not indices:
            continue
        texts = [text for index in indices for text in inputs[index]]
        try:
            rows = await classify(
                exchange,
                texts,
                options,
                are_pairs=size == _PAIR,
                model=None,
                default=default_model(exchange),
                pack=_pack,
                call=call,
            )
        except EngineError as error:
            _name_input(error, indices, is_batch=is_batch)
            raise
        found.update(zip(indices, rows, strict=True))
    if not is_batch:
        return Answer(found[0])
    return Answer(b"[%s]" % b",".join(found[index] for index in range(len(inputs))))


def _function(exchange: Exchange, *, raw: bool) -> classify_service_pb2.ScoreFunction:
    """Return what turns logits into scores, as in the original: by the number of labels."""
    served = exchange.find_model(None, default=default_model(exchange))
    _, _, labels = served.classifier()
    return choose_function(len(labels), raw=raw)


def _read_inputs(value: str | list[str | list[str]]) -> tuple[Sequence[Sequence[str]], bool]:
    """Return the inputs, of one text or two, and whether the body has several.

    Raises:
        InvalidRequestError: An input has another number of texts.
    """
    if isinstance(value, str):
        return [[value]], False
    texts = [one for one in value if isinstance(one, str)]
    if texts and len(texts) == len(value):
        # A list of texts is one input.
        if len(texts) > _PAIR:
            raise _wrong_size(texts, field="inputs")
        return [texts], False
    if texts:
        raise InvalidRequestError(
            "inputs has texts beside lists: write several inputs as a list of lists, each of one"
            " text or two",
            field="inputs",
        )
    inputs = [one for one in value if not isinstance(one, str)]
    for index, one in enumerate(inputs):
        if not 1 <= len(one) <= _PAIR:
            raise _wrong_size(one, field=f"inputs[{index}]")
    return inputs, True


def _wrong_size(texts: Sequence[str], *, field: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field} has {len(texts)} texts; an input has 1, or 2 that are a pair", field=field
    )


def _name_input(error: EngineError, indices: Sequence[int], *, is_batch: bool) -> None:
    """Name the place in the body of the text or pair at fault."""
    place = _PLACE.fullmatch(error.field)
    if place is None:
        return
    name = "inputs"
    if is_batch:
        name += f"[{indices[int(place['input'])]}]"
    rename_fields(error, {error.field: name + _MEMBERS.get(place["member"] or "", "")})


def _pack(classified: ClassifiedBatch) -> list[bytes]:
    """Return the labels of each input as JSON."""
    labels = classified.loaded.properties.labels
    scores = classified.result.scores
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        msgspec.json.encode([Prediction(row[index], labels[index]) for index in best])
        for row, best in zip(scores.tolist(), order.tolist(), strict=True)
    ]


async def run_model(exchange: Exchange) -> Answer:
    """Classify the inputs if the model has labels, and else embed them."""
    body: RootRequest = exchange.body
    loaded = exchange.find_model(None, default=default_model(exchange)).ready()
    service = Service.EMBED if loaded.classifier is None else Service.CLASSIFY
    current_caller().check_service(service)
    if service is Service.EMBED:
        what = "a text, or a list of texts"
        return await embed_body(exchange, _narrow(body, EmbedRequest, what))
    what = "a text, a list of one text or two, or a list of such lists"
    return await predict_body(exchange, _narrow(body, PredictRequest, what))


def _narrow(body: RootRequest, kind: type[Body], what: str) -> Body:
    """Return the body of another route.

    Raises:
        InvalidRequestError: `inputs` is not what that route takes.
    """
    values = msgspec.structs.asdict(body)
    try:
        return msgspec.convert({key: values[key] for key in kind.__struct_fields__}, kind)
    except msgspec.ValidationError:
        raise InvalidRequestError(f"inputs must be {what}", field="inputs") from None


ROUTES = (
    Route(
        "POST",
        "/predict",
        predict,
        tei_error,
        "Classify texts or pairs",
        TAG,
        list[Prediction | list[Prediction]],
        body=PredictRequest,
        example={"inputs": [["It is red."], ["Rivers flow to the sea."]]},
        fields={"options.": ""},
        need=Need(Service.CLASSIFY),
    ),
    Route(
        "POST",
        "/",
        run_model,
        tei_error,
        "Embed or classify, as the model does",
        TAG,
        # Vectors, or what /predict answers.
        list[Prediction | list[Prediction | float]],
        body=RootRequest,
        example={"inputs": "Rivers flow to the sea."},
        key="inputs",
        fields={"options.": "", "texts": "inputs"},
    ),
    Route(
        "POST",
        "/",
        rank_texts,
        tei_error,
        "Rank texts",
        TAG,
        list[RankedText],
        body=RerankRequest,
        example={"query": "How tall is the tower?", "texts": ["It is 330 metres tall."]},
        key="texts",
        fields={"options.": "", "documents": "texts"},
        need=Need(Service.RERANK),
    ),
)
