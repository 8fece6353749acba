"""A server of the default model for `benchmarks.doors`, until its standard input ends.

The only argument is "instant" or "real": whether the backend answers at once, or runs the model.
Prints the addresses of both ports as a line of JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from embedgrpc.backends.base import NO_CONTEXT, PaddedBatch, RunContext
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.loading.loading import open_onnx
from embedgrpc.server.process.process import settle_memory
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.settings import Settings

# The default model, and the numbers of its vectors.
MODEL: Final = "all-MiniLM-L6-v2"
_WIDTH = 384
# As `embedgrpc serve` sets it.
_SWITCH_INTERVAL_S = 0.0005


class InstantBackend:
    """Answers at once: what is left is the cost of the calls.

    Attributes:
        lanes: How many batches it runs at once.
        device: Where it claims to run.
    """

    def __init__(self) -> None:
        self.lanes = 1
        self.lanes_compete = False
        self.can_give_way = False
        self.parallelism = 1
        self.device = "cpu"
        self._row = np.random.default_rng(0).standard_normal(_WIDTH, np.float32)

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Return the same row for every sequence."""
        del context
        rows = np.tile(self._row, (len(batch.input_ids), 1))
        return dict.fromkeys(batch.outputs, rows)

    def close(self) -> None:
        """Close; there is nothing to free."""

    def open(self, model: ServedModel, graph_path: Path, settings: Settings) -> "InstantBackend":
        """Return itself in place of an opened graph."""
        del model, graph_path, settings
        return self


async def _serve(kind: str) -> None:
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        device="cpu",
        tei_model=MODEL,
        kserve=True,
        # Nothing is refused, however slow the machine is.
        max_queue_s=3600,
    )
    opened = InstantBackend().open if kind == "instant" else open_onnx
    async with Server(settings, open_backend=opened) as server:
        await server.load()
        settle_memory()
        print(json.dumps({"grpc": server.address, "http": server.http_address}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    # As `embedgrpc serve` sets it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    uvloop.run(_serve(sys.argv[1]))
