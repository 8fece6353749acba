"""What the APIs of text-embeddings-inference have in common, over gRPC and over HTTP."""

from collections.abc import Iterator
from typing import NamedTuple

from embedgrpc.engine.tasks.reranking import Reranker
from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.models.kinds import RerankMethod
from embedgrpc.models.tokenizers.tokenized_text import TokenizedText, byte_places
from embedgrpc.v1 import classify_service_pb2, rerank_service_pb2


class Token(NamedTuple):
    """A token of a text.

    Attributes:
        id: Its id.
        text: What it was made of; the vocabulary's entry for a special token.
        special: Whether the model put it around the text.
        start: Where it starts, in bytes of UTF-8; None for a special token.
        stop: Where it ends, exclusive.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def tokens_of(text: str, tokenized: TokenizedText, tokenizer: TextTokenizer) -> Iterator[Token]:
    """Yield the tokens of a text, which has its prompt in front."""
    places = byte_places(text)
    rows = zip(
        tokenized.ids.tolist(),
        tokenized.starts.tolist(),
        tokenized.ends.tolist(),
        tokenized.special.tolist(),
        tokenizer.entries(tokenized),
        strict=True,
    )
    for one, start, end, special, entry in rows:
        if special:
            yield Token(one, entry, special=True, start=None, stop=None)
        else:
            yield Token(one, text[start:end], False, int(places[start]), int(places[end]))


def choose_function(labels: int, *, raw: bool) -> classify_service_pb2.ScoreFunction:
    """Return what turns logits into scores: it depends on the number of labels alone."""
    if raw:
        return classify_service_pb2.SCORE_FUNCTION_RAW
    if labels == 1:
        return classify_service_pb2.SCORE_FUNCTION_SIGMOID
    return classify_service_pb2.SCORE_FUNCTION_SOFTMAX


def choose_scale(reranker: Reranker, *, raw: bool) -> rerank_service_pb2.ScoreScale:
    """Return the scale of a ranking: a sigmoid, whatever the model's own is."""
    if raw:
        return rerank_service_pb2.SCORE_SCALE_RAW
    if reranker.method is RerankMethod.CROSS_ENCODER:
        return rerank_service_pb2.SCORE_SCALE_SIGMOID
    # A similarity has no sigmoid.
    return rerank_service_pb2.SCORE_SCALE_UNSPECIFIED
