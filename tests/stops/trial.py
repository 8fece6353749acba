"""Stops a server under load and reports the statuses of its calls."""

import asyncio
import contextlib
import json
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.server.server_process import started


@dataclass(frozen=True, slots=True)
class Stop:
    """The result of one stop.

    Attributes:
        outcomes: How many calls ended with each status, including "OK".
        exit_code: The exit code of the server.
    """

    outcomes: dict[str, int]
    exit_code: int


async def stop_under_load(
    *, callers: int, pause_ms: float = 0.0, cache_dir: Path, flags: tuple[str, ...] = ()
) -> Stop:
    """Start a server, let callers call it, and stop it with SIGTERM meanwhile.

    Args:
        callers: How many there are.
        pause_ms: The mean time between two calls of a caller.
        cache_dir: The cache of built graphs.
        flags: Flags of `embedgrpc serve`.
    """
    async with started(*flags, cache_dir=cache_dir) as server:
        target = (await server.until("serving"))["address"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.stops.callers", target),
            *("--callers", str(callers), "--pause-ms", str(pause_ms)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            assert await process.stdout.readline() == b"calling\n"
            await asyncio.sleep(random.uniform(0, 0.2))  # noqa: S311 - at any moment of a batch
            server.signal(signal.SIGTERM)
            exit_code = await server.ended()
            outcomes = json.loads(await process.stdout.readline())
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    return Stop(outcomes, exit_code)
