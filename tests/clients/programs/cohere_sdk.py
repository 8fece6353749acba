"""Cohere's client: both versions rank, the second embeds."""

import json
import sys

import cohere

asked = json.load(sys.stdin)
query, documents, texts = asked["query"], asked["documents"], asked["texts"]
settings = {"api_key": "unused", "base_url": asked["url"]}
client = cohere.ClientV2(**settings)
formats = ["float", "int8", "ubinary", "binary", "base64"]
embedded = client.embed(
    model="embed", input_type="search_document", texts=texts, embedding_types=formats
)
by_type = embedded.embeddings
ranked = client.rerank(model="cross", query=query, documents=documents, top_n=2)
first = cohere.Client(**settings).rerank(
    model="cross", query=query, documents=documents, return_documents=True
)


def failure(**request):
    try:
        client.embed(**{"model": "embed", "input_type": "search_query", "texts": texts} | request)
    except cohere.core.ApiError as error:
        return {"class": type(error).__name__, "status": error.status_code}
    return None


json.dump(
    {
        "embeddings": {"float": by_type.float_},
        "int8": by_type.int8,
        "ubinary": by_type.ubinary,
        "binary": by_type.binary,
        "base64": by_type.base64,
        "tokens": embedded.meta.billed_units.input_tokens,
        "rankings": {
            "v1": [[one.index, one.relevance_score] for one in first.results],
        },
        "best": [[one.index, one.relevance_score] for one in ranked.results],
        "documents": [one.document.text for one in first.results],
        "failures": {
            "model": failure(model="nobody"),
            "formats": failure(embedding_types=["uint8"]),
        },
    },
    sys.stdout,
)
