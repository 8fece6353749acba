"""OpenAI's client for Python against a server that is full: it waits as long as it is told."""

import json
import sys
import time

import openai

asked = json.load(sys.stdin)
begun, refused = [], []


def note_request(_):
    begun.append(time.monotonic())


def note_response(response):
    if response.status_code == 429:
        refused.append((time.monotonic(), int(response.headers["retry-after-ms"])))
        print("refused", flush=True)


client = openai.OpenAI(
    base_url=asked["url"] + "/v1",
    api_key="unused",
    max_retries=20,
    http_client=openai.DefaultHttpxClient(
        event_hooks={"request": [note_request], "response": [note_response]}
    ),
)
answer = client.embeddings.create(model="embed", input=asked["texts"])
waits = [
    {"told_ms": told_ms, "waited_ms": (after - at) * 1000}
    for (at, told_ms), after in zip(refused, begun[1:], strict=True)
]
json.dump({"waits": waits, "vectors": len(answer.data)}, sys.stdout)
