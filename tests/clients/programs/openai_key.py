"""OpenAI's client for Python with keys: one that is known, and others."""

import json
import sys

import openai

asked = json.load(sys.stdin)


def attempt(key, model):
    client = openai.OpenAI(base_url=asked["url"] + "/v1", api_key=key, max_retries=0)
    try:
        answer = client.embeddings.create(model=model, input=asked["texts"])
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.type]
    return len(answer.data)


json.dump([attempt(key, model) for key, model in asked["attempts"]], sys.stdout)
