"""A server in front of tritonservers with faults, and calls to it meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.failures import Failure, read_failure
from tests.server.service import FIXTURES, PATIENCE_S, Service, serving, settings_for, until
from tests.server.services.test_health import EMBEDDING, SERVING
from tests.triton.environment import Environment
from tests.triton.made_up import write_embedding
from tests.triton.server import TritonServer

MODEL = f"{EMBEDDING}/far"
SOURCE = FIXTURES / "bert-mean"
TEXTS = tuple(f"text {index} about {word}" for index in range(5) for word in ("rivers", "red", "x"))
# The aim is two seconds; a busy machine takes longer.
_RECOVERY_S_MAX = 8.0


class Upstream:
    """A tritonserver with a made-up model, and the file that makes the model wait."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.hold = write_embedding(folder, "made-up", source=SOURCE)
        self.folder = folder
        self.server = TritonServer(environment, folder, models=["made-up"])

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *exit_: object) -> None:
        # A graceful stop would take a second.
        self.server.kill()
        self.server.__exit__(*exit_)

    def count(self, word: str) -> int:
        """Return how often the model has logged a word."""
        return self.server.log.splitlines().count(word)


@dataclass
class Load:
    """Consecutive calls, and how they ended.

    Attributes:
        answers: How many calls came out well.
        failures: The others.
        wrong: Texts whose vector was not the expected one.
    """

    answers: int = 0
    failures: list[Failure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def more(self, count: int) -> None:
        """Wait until this many more calls have succeeded."""
        enough = self.answers + count
        await until(lambda: self.answers >= enough)

    @property
    def reasons(self) -> set[tuple[grpc.StatusCode, str]]:
        """The reasons of failed calls."""
        return {(one.code, one.reason) for one in self.failures}


@asynccontextmanager
async def in_front_of(*upstreams: Upstream, graphs: Path) -> AsyncIterator[Service]:
    """Serve the made-up model from tritonservers, without a canary to notice faults first."""
    addresses = ",".join(one.server.address for one in upstreams)
    model = ModelSettings(id="far", source=f"triton:{addresses}/made-up")
    settings = settings_for(model, cache_dir=graphs, health_interval_s=3600)
    async with serving(settings) as service:
        yield service


async def vectors_of(service: Service, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    """Return the vectors of texts, float32 [texts, dimensions]."""
    answer = await service.client.embed(*texts)
    return np.array([list(one.dense.values) for one in answer.embeddings], np.float32)


@asynccontextmanager
async def under_load(service: Service, *, callers: int = 6) -> AsyncIterator[Load]:
    """Call without a pause until the block ends, and check that each call has ended."""
    expected = dict(zip(TEXTS, await vectors_of(service), strict=True))
    load = Load()
    stopped = False

    async def call(caller: int) -> None:
        number = caller
        while not stopped:
            text = TEXTS[number % len(TEXTS)]
            number += callers
            try:
                answer = await service.client.embed(text, timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                load.failures.append(read_failure(error))
                # Immediate refusals would leave no time for anything else.
                await asyncio.sleep(0.01)
                continue
            load.answers += 1
            vector = np.array(answer.embeddings[0].dense.values, np.float32)
            if np.abs(vector - expected[text]).max() > 1e-5:
                load.wrong.append(text)

    async with asyncio.TaskGroup() as tasks:
        for caller in range(callers):
            tasks.create_task(call(caller))
        try:
            yield load
        finally:
            stopped = True


async def recover(service: Service, since: float, what: str) -> None:
    """Wait until calls succeed again, and print how long that took."""
    async with asyncio.timeout(_RECOVERY_S_MAX):
        while True:
            try:
                await service.client.embed("a call")
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.005)
    tell_time(what, since)
    await until_status(service, SERVING)


def tell_time(what: str, since: float) -> None:
    """Print how long something took; shown with `-s`."""
    print(f"\n{what}: {time.monotonic() - since:.2f} s")  # noqa: T201 - see above


async def until_status(service: Service, status: int) -> None:
    """Wait until the health of the model and its service has a status."""
    async with asyncio.timeout(PATIENCE_S):
        for name in (MODEL, EMBEDDING):
            while await service.client.status(name) != status:  # noqa: ASYNC110 - asked, not told
                await asyncio.sleep(0.005)


async def until_held(upstream: Upstream, count: int = 1) -> None:
    """Wait until this many requests are inside the model."""
    await until(lambda: upstream.count("held") >= count)
