"""Two servers under load, while one after the other is restarted or killed.

A client balances over them, or Envoy does, with the configuration of the example.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.envoy.proxy import Proxy, running_envoy
from tests.replicas.replica import PATIENCE_S, Replica, running
from tests.server.config_file import write_config
from tests.server.service import CROSS, EMBED, FIXTURES

# Longer than Envoy takes to see that a server drains: it asks each second.
_DRAIN_DELAY_S = 3
_NO_LIMIT_PER_S = 100_000
SPARSE = ModelSettings(id="sparse", source=str(FIXTURES / "splade-bert"))


@dataclass(frozen=True, slots=True)
class Result:
    """What the callers saw.

    Attributes:
        outcomes: How many calls, and inputs of streams, had each outcome.
        exit_codes: Those of the servers that were asked to stop.
        duration_s: How long the callers called.
    """

    outcomes: dict[str, int]
    exit_codes: list[int]
    duration_s: float

    @property
    def failed(self) -> dict[str, int]:
        """The outcomes that are failures."""
        return {key: one for key, one in self.outcomes.items() if not key.endswith("OK")}

    @property
    def success(self) -> float:
        """The share of calls and inputs that were answered."""
        total = sum(self.outcomes.values())
        return 1 - sum(self.failed.values()) / total


async def roll(
    folder: Path, *, restarts: int, envoy: Path | None = None, callers: int = 8
) -> Result:
    """Restart the servers in turn, as a roll-out does: the next one once all have calls again."""
    codes: list[int] = []
    async with _under_load(folder, envoy=envoy, callers=callers, stream=True) as load:
        for number in range(restarts):
            replica = load.replicas[number % len(load.replicas)]
            codes.append(await replica.stop())
            await replica.start()
            await load.until_used(replica)
    return Result(load.outcomes, codes, load.duration_s)


async def reload(
    folder: Path, *, reloads: int, envoy: Path | None = None, callers: int = 8
) -> Result:
    """Send SIGHUP to both servers again and again, with models that come, change and go."""
    config = folder / "embedgrpc.toml"
    changed = SPARSE.model_copy(update={"max_tokens": 40})
    lists = ((EMBED, CROSS), (EMBED, CROSS, SPARSE), (EMBED, changed))
    write_config(config, *lists[-1])
    flags = ("--config", str(config))
    async with _under_load(folder, *flags, envoy=envoy, callers=callers, stream=True) as load:
        for number in range(reloads):
            write_config(config, *lists[number % len(lists)])
            for replica in load.replicas:
                await replica.reload()
    return Result(load.outcomes, [], load.duration_s)


async def kill(
    folder: Path, *, kills: int, pause_s: float, envoy: Path | None = None, callers: int = 8
) -> Result:
    """Kill one of the servers again and again."""
    async with _under_load(folder, envoy=envoy, callers=callers, stream=False) as load:
        for _ in range(kills):
            replica = load.replicas[0]
            await replica.kill()
            await replica.start()
            await load.until_used(replica)
            await asyncio.sleep(pause_s)
    return Result(load.outcomes, [], load.duration_s)


class _Load:
    def __init__(self, replicas: list[Replica], proxy: Proxy | None) -> None:
        self.replicas = replicas
        self.outcomes: dict[str, int] = {}
        self.duration_s = 0.0
        self._proxy = proxy

    async def until_used(self, replica: Replica) -> None:
        """Wait until a server that was started again gets calls."""
        if self._proxy is None:
            await replica.until_connected()
        else:
            await self._proxy.until_healthy(len(self.replicas))


@asynccontextmanager
async def _under_load(
    folder: Path, *options: str, envoy: Path | None, callers: int, stream: bool
) -> AsyncIterator[_Load]:
    async with AsyncExitStack() as stack:
        flags = (*options, "--drain-delay-s", str(_DRAIN_DELAY_S), "--intra-op-threads", "1")
        replicas = await stack.enter_async_context(running(2, folder, *flags))
        addresses = [one.address for one in replicas]
        proxy, target, secured = None, f"ipv4:{','.join(addresses)}", []
        if envoy is not None:
            context = running_envoy(envoy, folder, addresses, calls_per_s=_NO_LIMIT_PER_S)
            proxy = await stack.enter_async_context(context)
            target = f"localhost:{proxy.port}"
            secured = ["--ca-file", str(proxy.ca_file), "--token", proxy.issuer.issue("alice")]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.replicas.callers", target, *secured),
            *("--callers", str(callers), *(["--stream"] if stream else [])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        load = _Load(replicas, proxy)
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert await process.stdout.readline() == b"calling\n"
            for replica in replicas:
                await load.until_used(replica)
            begun_s = time.monotonic()
            yield load
            process.stdin.write(b"stop\n")
            async with asyncio.timeout(PATIENCE_S):
                load.outcomes = json.loads(await process.stdout.readline())
            load.duration_s = time.monotonic() - begun_s
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
