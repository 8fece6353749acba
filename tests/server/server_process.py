"""The command `embedgrpc serve` in its own process."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.server.service import EMBED, PATIENCE_S


class Process:
    """A server that was started; what it writes is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    @property
    def problems(self) -> list[str]:
        """The lines by which it refuses to start."""
        plain = [line for line in self.lines if line.startswith("embedgrpc: ")]
        return plain + [f"embedgrpc: {entry['problem']}" for entry in self.events("cannot start")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        entries = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == name]

    async def until(self, event: str, *, times: int = 1) -> dict[str, Any]:
        """Read lines until it has logged an event so many times; return the last entry."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S * 2):
            while len(found := self.events(event)) < times:
                line = await self.process.stderr.readline()
                assert line, f"it ended with {await self.process.wait()}: {self.lines}"
                self.lines.append(line.decode().rstrip())
        return found[-1]

    async def ended(self) -> int:
        """Wait for its end; return the exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S * 2):
            self.lines += (await self.process.stderr.read()).decode().splitlines()
            return await self.process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@asynccontextmanager
async def started(
    *arguments: str, cache_dir: Path, address: str = "127.0.0.1:0", telemetry: bool = False
) -> AsyncIterator[Process]:
    """Start a server; kill it at the end if it still runs."""
    flags = [*arguments, "--address", address, "--cache-dir", str(cache_dir), "--device", "cpu"]
    if not any(flag.startswith(("--model", "--config")) for flag in arguments):
        flags += ["--model", f"embed={EMBED.source}"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EMBEDGRPC_") and (telemetry or not name.startswith("OTEL_"))
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "embedgrpc.cli.main",
        "serve",
        *flags,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        # What is left in the pipe would keep its transport open.
        await process.communicate()
