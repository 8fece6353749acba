"""One soak: a server in its own process, clients of all kinds, and samples of the server."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks.trial import MODEL
from tests.server.server_process import started
from tests.soak.sampling import Sample, Trend, sample, trend, watch

# How long connections that clients have closed may take to be gone.
_SETTLING_S_MAX = 30.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        seconds: How long clients call.
        warm_up_s: How much of that is left out of the trend.
        interval_s: Time between two samples.
        cache_dir: Where the model's graph is built.
        seed: What clients draw from.
        progress: Is called with a line now and then.
    """

    seconds: float
    warm_up_s: float
    interval_s: float
    cache_dir: Path
    seed: str
    progress: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class Summary:
    """What came of a soak.

    Attributes:
        calls: How many calls of each kind ended with which status.
        before: What the server held when it was idle and warm, before the load.
        after: What it held when it was idle again.
        samples: What it held under load.
        trend: Of its resident memory after the warm-up.
        exit_code: The server's, after SIGTERM.
    """

    before: Sample
    after: Sample
    trend: Trend
    exit_code: int
    samples: list[Sample] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)


async def soak(plan: Plan) -> Summary:
    """Run a soak."""
    async with started("--model", MODEL, cache_dir=plan.cache_dir) as server:
        target = (await server.until("serving"))["address"]
        pid = server.process.pid
        log = asyncio.create_task(_read_log(server.process.stderr))
        # Run everything once first: what is created at first use is no leak.
        await _load(target, min(plan.warm_up_s, plan.seconds), f"{plan.seed}/warm-up")
        before = await _settled(pid, None)
        samples: list[Sample] = []
        watching = asyncio.create_task(watch(pid, samples, interval_s=plan.interval_s))
        telling = asyncio.create_task(_tell(samples, plan.progress))
        calls = await _load(target, plan.seconds, plan.seed)
        for task in (watching, telling):
            task.cancel()
        await asyncio.gather(watching, telling, return_exceptions=True)
        after = await _settled(pid, before)
        server.process.terminate()
        exit_code = await server.process.wait()
        await log
    late = [one for one in samples if one.at_s >= plan.warm_up_s]
    return Summary(
        before=before,
        after=after,
        trend=trend(late),
        exit_code=exit_code,
        samples=samples,
        calls=calls,
    )


async def _load(target: str, seconds: float, seed: str) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.load", target, str(seconds), seed),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    calls: dict[str, int] = json.loads(output)
    return calls


async def _settled(pid: int, before: Sample | None) -> Sample:
    """Sample a server that is idle, once it has let go of what its clients left."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    last = sample(pid, began)
    while loop.time() - began < _SETTLING_S_MAX:
        await asyncio.sleep(_POLL_S)
        now = sample(pid, began)
        if before is None and now.descriptors == last.descriptors:
            return now
        if before is not None and now.descriptors <= before.descriptors:
            return now
        last = now
    return last


async def _tell(samples: list[Sample], progress: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(60)
        one = samples[-1]
        progress(
            f"{one.at_s:.0f} s: {one.rss_mb:.1f} MB, {one.threads} threads,"
            f" {one.descriptors} descriptors"
        )


async def _read_log(stderr: asyncio.StreamReader | None) -> None:
    assert stderr is not None
    async for _ in stderr:
        pass
