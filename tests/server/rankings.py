"""The messages of StreamRerank."""

from collections.abc import Iterable
from typing import Any

from embedgrpc.v1 import rerank_service_pb2 as rerank


def setup(model: str = "", *, partial: bool = False, **options: Any) -> rerank.StreamRerankRequest:
    """Make the first message of a stream."""
    return rerank.StreamRerankRequest(
        setup=rerank.StreamRerankSetup(
            model=model, options=rerank.RerankOptions(**options), allow_partial=partial
        )
    )


def part(
    identifier: str, query: str, documents: Iterable[str], *, more: bool = False
) -> rerank.StreamRerankRequest:
    """Make a message with a query and its documents, or with some of them."""
    return rerank.StreamRerankRequest(
        part=rerank.StreamRerankPart(id=identifier, query=query, documents=documents, more=more)
    )
