"""Haystack's components for text-embeddings-inference."""

import asyncio
import json
import sys

from haystack import Document
from haystack.components.embedders import OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

asked = json.load(sys.stdin)
texts, documents = asked["texts"], asked["documents"]
place = {
    "api_type": "text_embeddings_inference",
    "api_params": {"url": asked["url"] + "/embed"},
    "token": Secret.from_token("unused"),
    # It asks for no normalization by default.
    "normalize": True,
}
embedder = HuggingFaceAPITextEmbedder(**place)
many = HuggingFaceAPIDocumentEmbedder(**place).run([Document(content=text) for text in texts])
openai = OpenAITextEmbedder(
    model="embed", api_base_url=asked["url"] + "/v1", api_key=Secret.from_token("unused")
)
ranker = HuggingFaceTEIRanker(url=asked["ranking_url"], top_k=len(documents))
given = {"query": asked["query"], "documents": [Document(content=text) for text in documents]}


def ranking(answer):
    return [[documents.index(one.content), one.score] for one in answer["documents"]]


json.dump(
    {
        "embeddings": {
            "documents": [one.embedding for one in many["documents"]],
            "queries": [embedder.run(text)["embedding"] for text in texts],
            "openai": [openai.run(text)["embedding"] for text in texts],
        },
        "rankings": {
            "run": ranking(ranker.run(**given)),
            "run_async": ranking(asyncio.run(ranker.run_async(**given))),
        },
    },
    sys.stdout,
)
