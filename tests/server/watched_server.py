"""A server in its own process that reports how long the turns of its event loop take.

python -m tests.server.watched_server SETTINGS

SETTINGS is JSON. It writes its addresses in one line, and then answers each line of its standard
input: `forget` begins anew, `longest` tells the longest turn since then in ms. What counts is the
time that the loop's thread computes, so that a busy machine makes no difference.
"""

import asyncio
import os
import sys
import time

import uvloop

from embedgrpc.server.process.grpc_core import prepare_core
from embedgrpc.server.process.process import settle_memory
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.loop_lag import LoopLag


async def _serve(settings: Settings) -> None:
    async with Server(settings) as server:
        await server.load()
        settle_memory()
        async with LoopLag(interval_s=0, clock=time.thread_time) as turns:
            print(server.address, server.http_address, flush=True)  # noqa: T201 - read by the test
            while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
                if command == "forget":
                    turns.forget()
                print(turns.longest_s * 1e3, flush=True)  # noqa: T201 - see above


if __name__ == "__main__":
    prepare_core(trusted_network=False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    uvloop.run(_serve(Settings.model_validate_json(sys.argv[1])))
