"""What a user of the client does, in an environment that has the client alone.

python smoke.py TARGET      prints the versions and what was answered, as a line of JSON

It runs with Python 3.10 and the oldest libraries that the client accepts.
"""

import asyncio
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from embedgrpc.client import AsyncClient, Client, EmptyInputError, HealthStatus

TEXTS = ["The tower is 330 metres tall.", "Rivers flow to the sea."]


def _call(target: str) -> dict[str, Any]:
    with Client(target) as client:
        assert client.health() is HealthStatus.SERVING
        assert f"{client.health()}" == "SERVING"
        result = client.embed(TEXTS)
        assert np.asarray(result).dtype == np.float32
        assert np.shares_memory(np.asarray(result), result.vectors)
        for encoding in ("float16", "bfloat16", "int8", "ubinary"):
            assert len(client.embed(TEXTS, encoding=encoding)) == len(TEXTS)
        with client.embed_stream((("a", TEXTS[0]), ("b", TEXTS[1])), order="input") as stream:
            streamed: Any = [one.vector for one in stream]
        vectors: Any = result.vectors
        np.testing.assert_allclose(streamed, vectors, atol=1e-5)
        client.wait_until_ready(60)
        encoded = client.encode(iter(TEXTS))
        np.testing.assert_allclose(encoded, vectors, atol=1e-5)
        assert client.similarity(encoded[0], encoded).shape == (1, len(TEXTS))
        assert [one["corpus_id"] for one in client.rank("How tall?", TEXTS)] == [0, 1]
        try:
            client.embed([" "])
        except EmptyInputError as error:
            violations = [(one.field, one.reason) for one in error.field_violations]
        ranked = client.rerank("How tall is the tower?", TEXTS)
        return {
            "vectors": result.vectors.tolist(),
            "models": [model.id for model in client.list_models()],
            "violations": violations,
            "ranks": [one.index for one in ranked],
            "tokens": client.count_tokens(TEXTS).token_counts.tolist(),
            "server": client.get_server().version,
        }


async def _call_on_a_loop(target: str) -> dict[str, Any]:
    async with AsyncClient(target) as client:
        results = await asyncio.gather(*(client.embed(TEXTS) for _ in range(8)))
        async with client.embed_stream([("a", TEXTS[0])]) as stream:
            ids = [one.id async for one in stream]
        encoded = await client.encode(TEXTS)
        np.testing.assert_allclose(encoded, results[0].vectors, atol=1e-5)
        try:
            await client.embed([" "])
        except EmptyInputError as error:
            reason = error.reason
    return {"vectors": results[-1].vectors.tolist(), "ids": ids, "reason": reason}


def _run_command(target: str) -> dict[str, Any]:
    """Embed a line with the console script beside this interpreter."""
    command = [str(Path(sys.executable).parent / "embedgrpc-client"), "embed", "--target", target]
    done = subprocess.run([*command, TEXTS[0]], stdout=subprocess.PIPE, check=True, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Call the server, and print what it answered."""
    target = sys.argv[1]
    libraries = ("grpcio", "protobuf", "numpy", "googleapis-common-protos")
    answer = {
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "blocking": _call(target),
        "on_a_loop": asyncio.run(_call_on_a_loop(target)),
        "command": _run_command(target),
    }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
