"""LlamaIndex's components for text-embeddings-inference."""

import asyncio
import json
import sys

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

asked = json.load(sys.stdin)
texts, documents = asked["texts"], asked["documents"]
embedding = TextEmbeddingsInference(model_name="embed", base_url=asked["url"])
ranker = TextEmbeddingInference(base_url=asked["ranking_url"], top_n=len(documents))
nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
ranked = ranker.postprocess_nodes(nodes, QueryBundle(asked["query"]))
json.dump(
    {
        "embeddings": {
            "documents": embedding.get_text_embedding_batch(texts),
            "queries": [embedding.get_query_embedding(text) for text in texts],
            "async": asyncio.run(embedding.aget_text_embedding_batch(texts)),
        },
        "rankings": {"nodes": [[documents.index(one.text), one.score] for one in ranked]},
    },
    sys.stdout,
)
