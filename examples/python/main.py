"""Embeds, streams, ranks and reads an error, with the Python client.

python main.py [HOST:PORT]
"""

import sys

from embedgrpc.client import Client, EmbedGrpcError


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
        # When the connection breaks, the stream connects again, and sends again what has no result.
        stream = client.embed_stream(texts, order="completion")
        answered = {one.id for one in stream if one.error is None}
        count = len(answered)
        print(f"stream: {count} of {len(texts)} texts, reconnects: {stream.reconnect_count}")

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
