"""ModelInfer: texts to vectors, pairs of texts to scores, and texts to the scores of labels."""

from collections.abc import Sequence

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.server.kserve.infer_call import InferCall
from embedgrpc.server.kserve.parameters import FIELD
from embedgrpc.server.kserve.signature import (
    EMBEDDING,
    QUERY,
    SCORE,
    TEXT,
    TEXT_PAIR,
    TOKEN_COUNT,
    Task,
)
from embedgrpc.server.services.classify_batch import (
    ClassifiedBatch,
    ClassifyBatch,
    classify_batch,
)
from embedgrpc.server.services.embed_batch import EmbedBatch, EmbeddedBatch, embed_batch
from embedgrpc.server.services.pair_scores import QueryScores, score_pairs, scores_of
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch


async def infer(call: InferCall) -> bytes:
    """Run a call; return the response in wire form.

    Raises:
        EngineError: A rule is broken, an input failed, or there is no room or time for it.
    """
    match call.task:
        case Task.EMBED:
            return await _embed(call)
        case Task.RANK:
            return await _rank(call)
        case Task.CLASSIFY:
            return await _classify(call)


async def _embed(call: InferCall) -> bytes:
    read = await call.read(TEXT)
    batch = EmbedBatch(
        call.served,
        read.texts,
        call.parameters.embed_options(),
        size_bytes=read.size_bytes,
        max_response_bytes=call.max_response_bytes,
        request_model=call.name,
        field=TEXT,
        options_field=FIELD,
    )

    def pack(embedded: EmbeddedBatch) -> bytes:
        embeddings = embedded.result.embeddings
        assert embeddings is not None and embeddings.vectors is not None  # noqa: S101, PT018 - they were asked for, and no text failed
        vectors = encode(embeddings.vectors, Encoding.FLOAT32).data  # float32 [n, dimensions]
        token_counts = np.array(embeddings.token_counts, "<i4")  # int32 [n]
        return call.pack(
            {EMBEDDING: vectors, TOKEN_COUNT: token_counts},
            input_tokens=embedded.input_tokens,
            truncated_inputs=sum(embeddings.truncated),
        )

    return await embed_batch(batch, call.call, call.settings, pack=pack)


async def _rank(call: InferCall) -> bytes:
    options = call.parameters.rank_options()
    queries, read = (await call.read(QUERY)).texts, await call.read(TEXT)
    texts = read.texts
    if len(queries) not in (1, len(texts)):
        raise InvalidRequestError(
            f"{QUERY} has {len(queries)} elements and {TEXT} has {len(texts)}: it needs one for"
            " each, or one for all",
            field=QUERY,
        )
    is_shared = len(queries) < len(texts)

    async def score(query: str, documents: Sequence[str]) -> QueryScores:
        batch = RankBatch(
            call.served,
            query,
            documents,
            options,
            # No character has more bytes.
            size_bytes=min(4 * sum(map(len, documents)), read.size_bytes),
            max_response_bytes=call.max_response_bytes,
            request_model=call.name,
            options_field=FIELD,
        )
        return await rank_batch(batch, call.call, call.settings, pack=scores_of)

    def name(index: int, is_query: bool) -> str:  # noqa: FBT001 - the protocol of `score_pairs`
        return f"{QUERY}[{0 if is_shared else index}]" if is_query else f"{TEXT}[{index}]"

    pairs = list(zip(queries * len(texts) if is_shared else queries, texts, strict=True))
    found = await score_pairs(pairs, score, name=name)
    scores = np.array(found.scores, "<f4")[:, np.newaxis]  # float32 [n, 1]
    return call.pack({SCORE: scores}, input_tokens=found.tokens, truncated_inputs=found.truncated)


async def _classify(call: InferCall) -> bytes:
    options = call.parameters.classify_options()
    read = await call.read(TEXT)
    texts, size_bytes = read.texts, read.size_bytes
    are_pairs = call.has(TEXT_PAIR)
    if are_pairs:
        second = await call.read(TEXT_PAIR)
        if len(second.texts) != len(texts):
            raise InvalidRequestError(
                f"{TEXT_PAIR} has {len(second.texts)} elements and {TEXT} has {len(texts)}: it"
                " needs one for each",
                field=TEXT_PAIR,
            )
        texts = [one for pair in zip(texts, second.texts, strict=True) for one in pair]
        size_bytes += second.size_bytes
    batch = ClassifyBatch(
        call.served,
        texts,
        are_pairs,
        options,
        size_bytes=size_bytes,
        max_response_bytes=call.max_response_bytes,
        request_model=call.name,
    )

    def pack(classified: ClassifiedBatch) -> bytes:
        result = classified.result
        return call.pack(
            {SCORE: np.ascontiguousarray(result.scores, "<f4")},  # float32 [n, labels]
            input_tokens=classified.input_tokens,
            truncated_inputs=sum(result.truncated),
        )

    return await classify_batch(batch, call.call, call.settings, pack=pack)
