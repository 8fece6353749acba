"""Predict and PredictPair of tei.v1."""

from collections.abc import Sequence

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.services.classify_batch import (
    ClassifiedBatch,
    ClassifyBatch,
    bound_response,
    classify_batch,
)
from embedgrpc.server.tei.request import Prepared, TeiAnswer, TeiRequest, read_truncation
from embedgrpc.server.tei.rules import choose_function
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import classify_service_pb2

_PAIR = 2


def prepare_text(request: TeiRequest) -> Prepared:
    """Read a `PredictRequest`."""
    return _prepare(request, [request.message.inputs])


def prepare_pair(request: TeiRequest) -> Prepared:
    """Read a `PredictPairRequest`, which may hold a single text.

    Raises:
        InvalidRequestError: It holds neither one text nor two.
    """
    inputs = list(request.message.inputs)
    if not 1 <= len(inputs) <= _PAIR:
        raise InvalidRequestError(
            f"inputs has {len(inputs)} texts; it must have 1 or {_PAIR}", field="inputs"
        )
    return _prepare(request, inputs)


def _prepare(request: TeiRequest, texts: Sequence[str]) -> Prepared:
    _, _, labels = request.served.classifier()
    batch = ClassifyBatch(
        served=request.served,
        texts=texts,
        are_pairs=len(texts) == _PAIR,
        options=classify_service_pb2.ClassifyOptions(
            score_function=choose_function(len(labels), raw=request.message.raw_scores),
            truncation=read_truncation(request.message),
        ),
        size_bytes=request.message.ByteSize(),
        max_response_bytes=request.max_response_bytes,
    )

    async def run() -> TeiAnswer:
        wire, tokens = await classify_batch(
            batch, request.call, request.settings, pack=_pack, reserve=request.reserve
        )
        characters = sum(map(len, texts))
        return TeiAnswer(wire, request.took(characters=characters, tokens=tokens))

    return Prepared(bound_response(batch), run)


def _pack(classified: ClassifiedBatch) -> tuple[bytes, int]:
    (scores,) = classified.result.scores
    labels = classified.loaded.properties.labels
    best_first = np.argsort(-scores, kind="stable")
    response = tei_pb2.PredictResponse(
        predictions=[
            tei_pb2.Prediction(score=float(scores[index]), label=labels[index])
            for index in best_first.tolist()
        ]
    )
    return response.SerializeToString(), classified.input_tokens
