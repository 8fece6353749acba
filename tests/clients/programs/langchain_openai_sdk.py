"""LangChain's OpenAIEmbeddings: by default it sends token ids of OpenAI's own tokenizer."""

import asyncio
import json
import sys

import openai
import tiktoken
from langchain_openai import OpenAIEmbeddings

asked = json.load(sys.stdin)
texts = asked["texts"]
settings = {"model": "embed", "base_url": asked["url"] + "/v1", "api_key": "unused"}
right = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)


class Tokenizer:
    """In the place of tiktoken's, whose vocabulary would have to be downloaded."""

    def encode_ordinary(self, text):
        return list(text.encode())

    def encode(self, text, **_):
        return list(text.encode())


def refusal():
    tiktoken.encoding_for_model = tiktoken.get_encoding = lambda _: Tokenizer()
    try:
        OpenAIEmbeddings(**settings).embed_documents(texts)
    except openai.BadRequestError as error:
        return error.message
    return None


json.dump(
    {
        "embeddings": {
            "documents": right.embed_documents(texts),
            "queries": [right.embed_query(text) for text in texts],
            "async": asyncio.run(right.aembed_documents(texts)),
        },
        "refusal": refusal(),
    },
    sys.stdout,
)
