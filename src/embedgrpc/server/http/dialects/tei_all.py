"""Vectors of single tokens in the HTTP API of text-embeddings-inference."""

import msgspec

from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.http.dialects.answers import Vectors
from embedgrpc.server.http.dialects.tei import TAG, as_truncation, embed_by, tei_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import PromptName, TeiTruncate, TextOrTexts, TruncationDirection
from embedgrpc.server.http.rows import number_lists
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import embedding_service_pb2


class EmbedAllRequest(msgspec.Struct):
    """The body of POST /embed_all."""

    inputs: TextOrTexts
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None
    prompt_name: PromptName = None


async def embed_tokens(exchange: Exchange) -> Answer:
    """Return the vector of each token of each text, before they are pooled.

    Those of special tokens and of the prompt are among them.

    Raises:
        EngineError: A text cannot be embedded, or the model cannot return them.
    """
    body: EmbedAllRequest = exchange.body
    options = embedding_service_pb2.EmbedOptions(
        token_vectors=True,
        truncation=as_truncation(body.truncate, body.truncation_direction),
    )
    return await embed_by(exchange, body.inputs, options, prompt_name=body.prompt_name, pack=_pack)


def _pack(embedded: EmbeddedBatch) -> bytes:
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.token_vectors is not None  # noqa: S101, PT018 - they were asked for, and no text failed
    texts = (encode(one.vectors, Encoding.FLOAT32).data for one in embeddings.token_vectors)
    return b"[%s]" % b",".join(map(number_lists, texts))


ROUTES = (
    Route(
        "POST",
        "/embed_all",
        embed_tokens,
        tei_error,
        "Embed each token of texts",
        TAG,
        list[Vectors],
        body=EmbedAllRequest,
        example={"inputs": ["Rivers flow to the sea."]},
        fields={"options.": ""},
        need=Need(Service.EMBED),
    ),
)
