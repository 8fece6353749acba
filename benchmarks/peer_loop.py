"""Embed texts with one library, as told line by line, to compare libraries and servers.

PYTHON benchmarks/peer_loop.py LIBRARY FOLDER THREADS

PYTHON has the library and NumPy, and nothing else is needed. FOLDER holds the model; it is unused
by "embedgrpc" and "tei", the clients of servers, which need this project's packages. Reads lines of
JSON on stdin, answers on stdout:
- {"do": "connect", "target": TARGET}: connect the client to a server;
- {"do": "prepare", "name": NAME, "texts": [...]}: take texts, outside any measurement;
- {"do": "all", "name": NAME}: embed all texts once, as one list;
- {"do": "one", "name": NAME, "number": N}: embed one text alone;
- {"do": "vectors", "name": NAME}: return the vectors of all texts.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Encode = Callable[[list[str]], NDArray[Any]]
# As the server's graphs call it.
_GRAPH_OUTPUT = "sentence_embedding"


def sentence_transformers(folder: str, threads: int) -> _Encode:
    """Load sentence-transformers on PyTorch."""
    importlib.import_module("torch").set_num_threads(threads)
    library = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(folder, device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> NDArray[Any]:
        return np.asarray(model.encode(texts, show_progress_bar=False))

    return encode


def fastembed(folder: str, threads: int) -> _Encode:
    """Load fastembed; the folder has a graph of the server, which pools and normalizes."""
    library = importlib.import_module("fastembed")
    described = importlib.import_module("fastembed.common.model_description")
    library.TextEmbedding.add_custom_model(
        model="measured",
        pooling=described.PoolingType.DISABLED,
        normalization=False,
        output_name=_GRAPH_OUTPUT,
        # It needs a source, although it takes the folder.
        sources=described.ModelSource(url="file://" + folder),
        dim=json.loads(Path(folder, "config.json").read_text("utf-8"))["hidden_size"],
        model_file="model.onnx",
    )
    model = library.TextEmbedding(
        "measured",
        specific_model_path=folder,
        threads=threads,
        providers=["CPUExecutionProvider"],
    )

    def encode(texts: list[str]) -> NDArray[Any]:
        return np.stack(list(model.embed(texts)))

    return encode


def infinity(folder: str, threads: int) -> _Encode:
    """Load Infinity's engine on PyTorch, without its HTTP server."""
    library = importlib.import_module("infinity_emb")
    importlib.import_module("torch").set_num_threads(threads)
    engine = library.AsyncEmbeddingEngine.from_args(
        library.EngineArgs(
            model_name_or_path=folder,
            engine="torch",
            device="cpu",
            dtype="float32",
            # BetterTransformer is gone from current libraries.
            bettertransformer=False,
            model_warmup=False,
        )
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def encode(texts: list[str]) -> NDArray[Any]:
        vectors, _ = loop.run_until_complete(engine.embed(texts))
        return np.stack(vectors)

    return encode


def embedgrpc(target: str) -> _Encode:
    """Connect to a server with the client of this project."""
    client = importlib.import_module("embedgrpc.client").Client(target, timeout_s=600)

    def encode(texts: list[str]) -> NDArray[Any]:
        if len(texts) == 1:
            return np.asarray([client.encode(texts[0])])
        return np.asarray(client.encode(texts))

    return encode


def tei(target: str) -> _Encode:
    """Connect to text-embeddings-inference with a generated client: a list is one stream."""
    grpc = importlib.import_module("grpc")
    messages = importlib.import_module("embedgrpc.tei.v1.tei_pb2")
    stubs = importlib.import_module("embedgrpc.tei.v1.tei_pb2_grpc")
    channel = grpc.insecure_channel(target)
    info, stub = stubs.InfoStub(channel), stubs.EmbedStub(channel)
    # A server may listen before it has loaded its model.
    for _ in range(60 * 200):
        try:
            info.Info(messages.InfoRequest(), timeout=60)
            break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.005)

    def encode(texts: list[str]) -> NDArray[Any]:
        requests = [messages.EmbedRequest(inputs=text, normalize=True) for text in texts]
        if len(texts) == 1:
            answers = [stub.Embed(requests[0], timeout=600)]
        else:
            answers = stub.EmbedStream(iter(requests), timeout=600)
        return np.asarray([answer.embeddings for answer in answers], np.float32)

    return encode


_CLIENTS = {"embedgrpc": embedgrpc, "tei": tei}
# What a client imports, so that a server's start does not count it.
_CLIENT_IMPORTS = {
    "embedgrpc": ("embedgrpc.client",),
    "tei": ("grpc", "embedgrpc.tei.v1.tei_pb2_grpc"),
}
_LIBRARIES = {
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
    "infinity": infinity,
}


class _Loop:
    def __init__(self, library: str, folder: str, threads: str) -> None:
        self._texts: dict[str, list[str]] = {}
        self._encode: _Encode
        if library in _CLIENTS:
            # A caller has it imported before a server starts.
            for module in _CLIENT_IMPORTS[library]:
                importlib.import_module(module)
            self._connect = _CLIENTS[library]
        else:
            self._encode = _LIBRARIES[library](folder, int(threads))

    def connect(self, *, target: str) -> dict[str, Any]:
        self._encode = self._connect(target)
        return {}

    def prepare(self, *, name: str, texts: list[str]) -> dict[str, Any]:
        self._texts[name] = texts
        return {}

    def all(self, *, name: str) -> dict[str, Any]:
        return self._measure(self._texts[name])

    def one(self, *, name: str, number: int) -> dict[str, Any]:
        return self._measure([self._texts[name][number]])

    def vectors(self, *, name: str) -> dict[str, Any]:
        return {"vectors": self._encode(self._texts[name]).tolist()}

    def _measure(self, texts: list[str]) -> dict[str, Any]:
        began = time.perf_counter()
        count = len(self._encode(texts))
        seconds = time.perf_counter() - began
        if count != len(texts):
            raise RuntimeError(f"{count} vectors of {len(texts)} texts")
        return {"seconds": seconds}


def main() -> None:
    """Answer requests until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        # Some libraries print.
        os.dup2(2, 1)
        loop = _Loop(*sys.argv[1:])
        for line in sys.stdin:
            request = json.loads(line)
            answers.write(json.dumps(getattr(loop, request.pop("do"))(**request)) + "\n")
            answers.flush()
    # Threads of a library may wait for ever.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
