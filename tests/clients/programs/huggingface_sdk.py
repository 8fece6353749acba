"""Clients of text-embeddings-inference and of Hugging Face's API, and LangChain over one."""

import asyncio
import json
import sys

from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings

asked = json.load(sys.stdin)
texts = asked["texts"]
# A client that is given a URL posts to it as it is.
client = InferenceClient(model=asked["url"] + "/embed")
other = AsyncInferenceClient(model=asked["url"] + "/embed")


def refusal():
    try:
        HuggingFaceEndpointEmbeddings(model=asked["url"])
    except ValueError as error:
        return str(error)
    return None


langchain = HuggingFaceEndpointEmbeddings(model="any/name", huggingfacehub_api_token="unused")
langchain.client, langchain.async_client = client, other


async def embed():
    async with other:
        found = (await other.feature_extraction(texts)).tolist()
        return found, await langchain.aembed_documents(texts)


found, through_langchain = asyncio.run(embed())
json.dump(
    {
        "embeddings": {
            "many": client.feature_extraction(texts).tolist(),
            "one by one": [client.feature_extraction(text)[0].tolist() for text in texts],
            "async": found,
            "options": client.feature_extraction(texts, truncate=True, normalize=True).tolist(),
            "langchain": langchain.embed_documents(texts),
            "langchain, one by one": [langchain.embed_query(text) for text in texts],
            "langchain async": through_langchain,
        },
        "raw": client.feature_extraction(texts, normalize=False).tolist(),
        "refusal": refusal(),
    },
    sys.stdout,
)
