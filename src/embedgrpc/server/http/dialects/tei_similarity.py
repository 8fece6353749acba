"""Similarity in the HTTP API of text-embeddings-inference."""

import re
from typing import Annotated

import msgspec
import orjson

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.http.dialects.tei import TAG, as_truncation, embed_by, tei_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import PromptName, TeiTruncate, Texts, TruncationDirection, about
from embedgrpc.server.http.rows import dense_of
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import embedding_service_pb2

_PLACE = re.compile(r"texts\[(\d+)\]")


class SimilarityInputs(msgspec.Struct):
    """A sentence, and those to compare it with."""

    source_sentence: Annotated[str, about("The sentence that the others are compared with.")]
    sentences: Annotated[Texts, about("The other sentences.")]


class SimilarityParameters(msgspec.Struct):
    """How to embed the sentences."""

    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None
    prompt_name: PromptName = None


class SimilarityRequest(msgspec.Struct):
    """The body of POST /similarity."""

    inputs: Annotated[SimilarityInputs, about("The sentences.")]
    parameters: Annotated[SimilarityParameters | None, about("How to embed them.")] = None


async def compare(exchange: Exchange) -> Answer:
    """Return the cosine of the vectors of a sentence and of each of the others.

    Raises:
        EngineError: A sentence cannot be embedded.
    """
    body: SimilarityRequest = exchange.body
    inputs, parameters = body.inputs, body.parameters or SimilarityParameters()
    limit = exchange.served.settings.max_inputs - 1
    check_count(len(inputs.sentences), limit=limit, field="inputs.sentences")
    options = embedding_service_pb2.EmbedOptions(
        representations=[embedding_service_pb2.REPRESENTATION_DENSE],
        truncation=as_truncation(parameters.truncate, parameters.truncation_direction),
        normalize=True,
    )
    texts = [inputs.source_sentence, *inputs.sentences]
    name = parameters.prompt_name
    try:
        return await embed_by(exchange, texts, options, prompt_name=name, field="texts", pack=_pack)
    except EngineError as error:
        _name_sentence(error)
        raise


def _name_sentence(error: EngineError) -> None:
    place = _PLACE.fullmatch(error.field)
    if place is None:
        return
    index = int(place[1])
    name = f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence"
    rename_fields(error, {error.field: name})


def _pack(embedded: EmbeddedBatch) -> bytes:
    vectors = dense_of(embedded)
    cosines = vectors[1:] @ vectors[0]
    return orjson.dumps(cosines.clip(-1, 1), option=orjson.OPT_SERIALIZE_NUMPY)


ROUTES = (
    Route(
        "POST",
        "/similarity",
        compare,
        tei_error,
        "Compare a sentence with others",
        TAG,
        list[float],
        body=SimilarityRequest,
        example={
            "inputs": {
                "source_sentence": "It is red.",
                "sentences": ["Red is its colour.", "Rivers flow to the sea."],
            }
        },
        fields={"options.": "parameters."},
        need=Need(Service.EMBED),
    ),
)
