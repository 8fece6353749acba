"""LiteLLM, in each of the forms that it can be told to speak."""

import json
import sys

import litellm

asked = json.load(sys.stdin)
url, texts = asked["url"], asked["texts"]
given = {"query": asked["query"], "documents": asked["documents"], "api_key": "unused"}


def embed(model, base, **more):
    answer = litellm.embedding(model=model, input=texts, api_base=base, api_key="unused", **more)
    return [one["embedding"] for one in answer.data]


def rank(model, base, **more):
    answer = litellm.rerank(model=model, api_base=base, **given, **more)
    return [[one["index"], one["relevance_score"]] for one in answer.results]


def failure():
    try:
        embed("openai/nobody", url + "/v1")
    except litellm.exceptions.NotFoundError as error:
        return {"class": type(error).__name__, "status": error.status_code}
    return None


json.dump(
    {
        "embeddings": {
            "openai": embed("openai/embed", url + "/v1", encoding_format="float"),
            "openai base64": embed("openai/embed", url + "/v1"),
            "hosted_vllm": embed("hosted_vllm/embed", url + "/v1"),
            "huggingface": embed("huggingface/embed", url + "/embed", input_type="embed"),
        },
        "rankings": {
            "cohere": rank("cohere/cross", url),
            "jina_ai": rank("jina_ai/cross", url),
            # Infinity's documents are strings, at the path where those of others are objects.
            "infinity": rank("infinity/cross", url, return_documents=False),
            "hosted_vllm": rank("hosted_vllm/cross", url),
            "huggingface": rank("huggingface/cross", asked["ranking_url"]),
        },
        "failures": {"model": failure()},
    },
    sys.stdout,
)
