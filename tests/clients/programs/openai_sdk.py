"""OpenAI's client for Python, blocking and asynchronous."""

import asyncio
import json
import sys

import openai

asked = json.load(sys.stdin)
texts = asked["texts"]
settings = {"base_url": asked["url"] + "/v1", "api_key": "unused", "max_retries": 0}
client = openai.OpenAI(**settings)


def vectors(answer):
    return [one.embedding for one in answer.data]


def failure(**request):
    try:
        client.embeddings.create(**{"model": "embed", "input": texts} | request)
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "message": error.message,
            "request_id": error.request_id,
        }
    return None


async def asynchronous():
    async with openai.AsyncOpenAI(**settings) as other:
        default, floats = await asyncio.gather(
            other.embeddings.create(model="embed", input=texts),
            other.embeddings.create(model="embed", input=texts, encoding_format="float"),
        )
        listed = [model.id async for model in other.models.list()]
        return {"base64": vectors(default), "float": vectors(floats)}, listed


default = client.embeddings.create(model="embed", input=texts)
floats = client.embeddings.create(model="embed", input=texts, encoding_format="float")
short = client.embeddings.create(model="embed", input=texts, dimensions=8)
query = client.embeddings.create(
    model="embed", input=texts, extra_body={"input_type": "query", "normalize": False}
)
one = client.embeddings.create(model="embed", input=texts[0])
found, listed = asyncio.run(asynchronous())
json.dump(
    {
        "embeddings": {
            "base64": vectors(default),
            "float": vectors(floats),
            "async base64": found["base64"],
            "async float": found["float"],
        },
        "short": vectors(short),
        "query": vectors(query),
        "one": vectors(one),
        "model": default.model,
        "tokens": default.usage.prompt_tokens,
        "models": [listed, [model.id for model in client.models.list()]],
        "retrieved": client.models.retrieve("org/second").id,
        "failures": {
            "model": failure(model="nobody"),
            "dimensions": failure(dimensions=10**6),
            "empty": failure(input=[]),
            "tokens": failure(input=[[1, 2, 3]]),
            "format": failure(encoding_format="hex"),
        },
    },
    sys.stdout,
)
