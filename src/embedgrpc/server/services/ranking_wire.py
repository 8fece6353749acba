"""Encodes rankings for the wire."""

from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.v1 import common_pb2, rerank_service_pb2


def ranking_wire(ranked: RankedBatch) -> tuple[bytes, common_pb2.Usage]:
    """Return a `Ranking` in wire form, and its usage."""
    ranking, count = ranked.ranking, ranked.count
    rows = zip(
        ranking.indices[:count].tolist(),
        ranking.scores[:count].tolist(),
        ranking.truncated[:count].tolist(),
        strict=True,
    )
    returns = ranked.ranker.options.return_documents
    packed = rerank_service_pb2.Ranking(
        results=[
            rerank_service_pb2.RankedDocument(
                index=index,
                score=score,
                document=ranked.documents[index] if returns else "",
                truncated=truncated,
            )
            for index, score, truncated in rows
        ],
        failures=[
            rerank_service_pb2.FailedDocument(index=index, error=item_error(error))
            for index, error in sorted(ranking.failures.items())
        ],
        usage=common_pb2.Usage(
            input_tokens=ranking.input_tokens,
            truncated_inputs=ranking.truncated_inputs,
            query_tokens=ranking.query_tokens,
            document_tokens=ranking.document_tokens,
        ),
    )
    return packed.SerializeToString(), packed.usage
