"""Embeds, streams, ranks and reads an error, with the Python client.

python main.py [HOST:PORT]
"""

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain

from embedgrpc.client import (
    Client,
    ConnectionFailedError,
    EmbedGrpcError,
    ShuttingDownError,
    StreamResult,
)

RECONNECTS_MAX = 5


class Embedding:
    """Embeds texts over as many streams as it takes.

    Attributes:
        reconnects: How often the stream was lost and opened again.
    """

    def __init__(self, client: Client) -> None:
        self.reconnects = 0
        self._client = client
        # What was sent and is not answered. The window of the stream bounds it.
        self._unanswered: dict[str, str] = {}

    def run(self, texts: Iterable[tuple[str, str]]) -> Iterator[StreamResult]:
        """Yield a result for each pair of an id and a text, in any order."""
        left = iter(texts)
        while True:
            inputs = chain(list(self._unanswered.items()), left)
            try:
                for result in self._client.embed_stream(self._kept(inputs), order="completion"):
                    del self._unanswered[result.id]
                    yield result
            except (ConnectionFailedError, ShuttingDownError):
                self.reconnects += 1
                if self.reconnects > RECONNECTS_MAX:
                    raise
                time.sleep(0.1 * 2**self.reconnects)
            else:
                return

    def _kept(self, inputs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Pass inputs on, and keep them until they are answered."""
        for name, text in inputs:
            self._unanswered[name] = text
            yield name, text


def main(target: str) -> None:
    """Run every step against a server."""
    with Client(target, timeout_s=30) as client:
        tower, river = "The tower is 330 metres tall.", "Rivers flow to the sea."
        result = client.embed([tower, river])
        count, dimensions = result.vectors.shape
        first, second = result.token_counts
        print(f"embed: {count} vectors of {dimensions} numbers, {first} and {second} tokens")

        partial = client.embed([tower, ""], allow_partial=True)
        for index, failure in partial.errors.items():
            print(f"partial: texts[{index}] {failure.reason}")

        texts = [(str(number), f"text number {number}") for number in range(2000)]
        embedding = Embedding(client)
        answered = [one.id for one in embedding.run(texts) if one.error is None]
        count = len(set(answered))
        print(f"stream: {count} of {len(texts)} texts, reconnects: {embedding.reconnects}")

        documents = ["It is red.", tower, river]
        for ranked in client.rerank("How tall is the tower?", documents, top_n=2):
            print(f"rerank: {ranked.score:.4f} {documents[ranked.index]}")

        queries = ["How tall is the tower?", "Where does the water go?"]
        documents = [tower, river]
        results = client.rerank_stream((query, query, documents) for query in queries)
        best = {result.id: result.ranking for result in results}
        for query in queries:
            if ranking := best[query]:
                print(f"stream rerank: {query} {documents[ranking[0].index]}")

        try:
            client.embed([tower, river], truncation="none", max_tokens=4)
        except EmbedGrpcError as error:
            fields = [violation.field for violation in error.field_violations]
            print("error:", error.code.name, error.reason, error.label, *fields)
            if error.retry_delay_s is not None:
                print(f"retry after {error.retry_delay_s:g} s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
