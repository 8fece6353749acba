"""SIGHUP: new settings are applied to a running server without a failed call, or not at all."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.server.loading.changes import LastReload, ModelChangeError
from embedgrpc.server.process.pid_file import PidFileError, find_process, pid_file
from embedgrpc.server.settings.configuration import configure
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.config_file import write_config
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.server_process import started
from tests.server.service import (
    CROSS,
    EMBED,
    FIXTURES,
    PATIENCE_S,
    Client,
    Service,
    serving,
    until,
)
from tests.server.services.test_health import EMBEDDING, RERANK, SERVING, Watcher
from tests.server.streams import Stream
from tests.soak.sampling import sample

SERVICE_UNKNOWN = 3
NLI = ModelSettings(id="nli", source=str(FIXTURES / "classify-nli"))
SPARSE = ModelSettings(id="sparse", source=str(FIXTURES / "splade-bert"))


class Load:
    """Callers of a server that go on and on; any failure ends them.

    Attributes:
        calls: How many calls have succeeded.
        fingerprints: Those of the answers, in the order of the first of each.
    """

    def __init__(self, address: str, http_address: str) -> None:
        self.calls = 0
        self.fingerprints: list[str] = []
        self._client = Client(address)
        self._http = HttpClient.at(http_address)
        self._stopped = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Call until the block ends; raise what a call raised."""
        async with self._client.channel, asyncio.TaskGroup() as group:
            for call in (self._embed, self._embed, self._post, self._stream):
                group.create_task(self._repeat(call))
            try:
                yield self
            finally:
                self._stopped = True

    async def more(self, calls: int = 8) -> None:
        """Wait until so many more calls have succeeded."""
        wanted = self.calls + calls
        await until(lambda: self.calls >= wanted)

    async def _repeat(self, call: Any) -> None:
        while not self._stopped:
            await call()
            self.calls += 1

    async def _embed(self) -> None:
        response = await self._client.embed("a text", "another")
        if response.fingerprint not in self.fingerprints:
            self.fingerprints.append(response.fingerprint)

    async def _post(self) -> None:
        reply = await self._http.post("/v1/embeddings", {"model": "embed", "input": "a text"})
        assert reply.status == 200, reply.body

    async def _stream(self) -> None:
        stream = await Stream.open(self._client)
        await stream.send(("a", "a text"), ("b", "another"))
        await stream.end()


class Reloadable:
    """A server and the file with its settings."""

    def __init__(self, service: Service, config: Path) -> None:
        self.service = service
        self.config = config
        self.server = service.server
        self.load = Load(self.server.address, self.server.http_address)

    async def reload(self) -> LastReload:
        """Reload, and return how that ended."""
        reloading = self.server.reloading
        reloading.last = None
        reloading.request()
        await until(lambda: reloading.last)
        assert reloading.last is not None
        return reloading.last


@pytest.fixture
async def reloadable(cache_dir: Path, tmp_path: Path) -> AsyncIterator[Reloadable]:
    """A server in this process that reads its settings from a file."""
    config = tmp_path / "embedgrpc.toml"
    write_config(config, EMBED, CROSS, SPARSE)
    flags = {
        "address": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "device": "cpu",
        "intra_op_threads": 1,
        "cache_dir": str(cache_dir),
    }

    def read() -> Settings:
        return configure(flags, config).settings

    async with serving(read()) as service:
        service.server.reloading.read = read
        yield Reloadable(service, config)


async def test_models_change_under_load(
    reloadable: Reloadable, caplog: pytest.LogCaptureFixture
) -> None:
    """One is added, one replaced, one renamed and one removed, and no call fails."""
    caplog.set_level(logging.INFO)
    server = reloadable.server
    async with reloadable.load.running() as load:
        await load.more()
        replaced = EMBED.model_copy(update={"max_tokens": 9})
        renamed = CROSS.model_copy(update={"aliases": ("ranker",)})
        added = ModelSettings(id="added", source=EMBED.source)
        write_config(reloadable.config, replaced, renamed, added, max_calls=4000, log_level="debug")
        last = await reloadable.reload()
        await load.more()
        await until(lambda: not server.catalog.draining)
        await load.more(2)
    assert (last.problem, last.needs_restart) == ("", ("max_calls",))
    assert logging.getLogger().level == logging.DEBUG
    (record,) = [one for one in caplog.records if one.message == "reloaded"]
    fields = [getattr(record, one) for one in ("added", "replaced", "removed", "renamed")]
    assert fields == ["added", "embed", "sparse", "cross"]
    closed = [one for one in caplog.records if one.message == "model closed"]
    assert [one.calls_cut_off for one in closed] == [0, 0]  # type: ignore[attr-defined]
    assert len(load.fingerprints) == 2
    assert [one.id for one in server.catalog] == ["embed", "cross", "added"]


async def test_a_bad_reload_changes_nothing(reloadable: Reloadable, tmp_path: Path) -> None:
    """A file that is no TOML, a wrong value, and a model that cannot be loaded."""
    config = reloadable.config
    missing = ModelSettings(id="no", source=str(tmp_path / "nothing"))
    files = BadFiles()
    reloadable.server._files.append(files)
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: config.write_text("models = ["), "TOML"),
        (lambda: write_config(config, EMBED, max_calls=1), "max_calls"),
        (lambda: write_config(config, EMBED, EMBED), "two models"),
        # The first of them could be loaded.
        (lambda: write_config(config, NLI, missing), "no: "),
        (lambda: files.spoil(config), "a bad key"),
    ]
    async with reloadable.load.running() as load:
        for spoil, named in bad:
            spoil()
            assert named in (await reloadable.reload()).problem
            await load.more(4)
        assert files.reloads == 0
        files.problem = ""
        write_config(config, EMBED, CROSS, SPARSE)
        assert (await reloadable.reload()).problem == ""
    assert len(load.fingerprints) == 1
    assert [one.id for one in reloadable.server.catalog] == ["embed", "cross", "sparse"]
    outcomes = [one.value for one in reloadable.server.reloading.reading()]
    assert outcomes == [files.reloads, len(bad)] == [1, 5]


async def test_limits_of_callers_change(reloadable: Reloadable) -> None:
    """They come, change and go without a restart."""
    client = reloadable.service.client
    write_config(reloadable.config, EMBED, requests_per_s=0.001, request_burst=2)
    assert (await reloadable.reload()).needs_restart == ()
    for _ in range(2):
        await client.embed("a text")
    assert (await failure_of(client.embed("a text"))).reason == "RATE_LIMITED"
    write_config(reloadable.config, EMBED, requests_per_s=0.001, request_burst=3)
    await reloadable.reload()
    await client.embed("a text")
    assert (await failure_of(client.embed("a text"))).reason == "RATE_LIMITED"
    write_config(reloadable.config, EMBED)
    await reloadable.reload()
    await client.embed("a text")


class BadFiles:
    """Files that cannot be used for a while."""

    def __init__(self) -> None:
        self.problem = ""
        self.reloads = 0

    def spoil(self, config: Path) -> None:
        """Make them unusable, beside good settings."""
        write_config(config, EMBED)
        self.problem = "a bad key"

    def check(self) -> str:
        """Return what is wrong; see `ReloadableFiles`."""
        return self.problem

    def reload(self) -> None:
        """Count the reload; see `ReloadableFiles`."""
        self.reloads += 1


async def test_requests_while_a_reload_runs_are_one(serve: Serve) -> None:
    """However often it is asked for meanwhile, one more reload follows."""
    service = await serve(EMBED)
    reloading = service.server.reloading
    settings = service.server._settings
    reads: list[int] = []

    def read() -> Any:
        reads.append(len(reads))
        if len(reads) == 1:
            for _ in range(20):
                loop.call_soon_threadsafe(reloading.request)
        return settings.model_copy(update={"models": (EMBED, CROSS)})

    loop = asyncio.get_running_loop()
    reloading.read = read
    reloading.request()
    await until(lambda: reloading.last and reloading._running is None)
    assert reads == [0, 1]
    assert {one.metric: one.value for one in reloading.reading()} == {"embedgrpc.reloads": 0}
    assert [one.value for one in reloading.reading()] == [2, 0]
    assert [one.id for one in service.server.catalog] == ["embed", "cross"]


async def test_health_follows_the_models(serve: Serve) -> None:
    """The service of a model comes and goes with it; that of a replaced one stays up."""
    service = await serve(EMBED, CROSS)
    change = service.server.models.change
    replaced = Watcher(service.client, f"{EMBEDDING}/embed")
    removed = Watcher(service.client, f"{RERANK}/cross")
    added = Watcher(service.client, f"{EMBEDDING}/second")
    assert [await one.next() for one in (replaced, removed, added)] == [
        SERVING,
        SERVING,
        SERVICE_UNKNOWN,
    ]
    await change(add=ModelSettings(id="second", source=EMBED.source))
    assert await added.next() == SERVING
    await change(remove="cross", again=("embed",))
    assert await removed.next() == SERVICE_UNKNOWN
    await change(remove="second")
    assert await added.next() == SERVICE_UNKNOWN
    # Nothing else came to this one.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await replaced.next()


async def test_calls_in_flight_keep_their_model(serve: Serve, backend: HashBackend) -> None:
    """A removed model is not found any more, and is closed when its last call has ended."""
    keep = ModelSettings(id="keep", source=EMBED.source)
    service = await serve(keep, EMBED, backend=backend)
    backend.hold()
    call = asyncio.ensure_future(service.client.embed("a text", model="embed"))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    change = await service.server.models.change(remove="embed")
    assert change.closed is not None
    failure = await failure_of(service.client.embed("a text", model="embed"))
    assert failure.reason == "MODEL_NOT_FOUND"
    assert not change.closed.done()
    assert not backend.closed.is_set()
    backend.release()
    assert len((await call).embeddings) == 1
    await change.closed
    assert backend.closed.is_set()
    assert not service.server.catalog.draining


async def test_streams_end_in_time(serve: Serve) -> None:
    """A stream answers what it has accepted and ends with SHUTTING_DOWN."""
    service = await serve(EMBED, shutdown_grace_s=0.05)
    stream = await Stream.open(service.client)
    await stream.send(("a", "a text"))
    await stream.results(1)
    change = await service.server.models.change(again=("embed",))
    failure = await stream.failure()
    assert (failure.reason, failure.label) == ("SHUTTING_DOWN", "MODEL_CLOSED")
    assert change.closed is not None
    await change.closed
    await service.client.embed("the new one serves")


async def test_a_closed_model_leaves_memory(serve: Serve) -> None:
    """Nothing of it is kept alive, without the garbage collector."""
    models = (EMBED, CROSS, NLI, SPARSE)
    service = await serve(*models)
    client = service.client
    await client.embed("a text")
    await client.embed("a text", model="sparse")
    await client.rerank.Rerank(rerank.RerankRequest(model="cross", query="q", documents=["one"]))
    await client.classify.Classify(classify.ClassifyRequest(model="nli", texts=["one"]))
    kept: list[weakref.ref[Any]] = []
    for model in service.server.catalog:
        loaded = model.ready()
        task: Any = loaded.embedder or loaded.reranker or loaded.classifier
        # What holds the tokenizer and what holds the weights.
        parts = (getattr(task, "pipeline", None) or task._pipeline, loaded.scheduler._backend)
        kept += [weakref.ref(one) for one in parts]
    del model, loaded, task, parts
    gc.collect()
    gc.disable()
    try:
        change = await service.server.models.change(again=[one.id for one in models])
        assert change.closed is not None
        await change.closed
        assert len(change.replaced) == len(models)
        await client.embed("a text")
        assert [one() for one in kept] == [None] * len(kept)
    finally:
        gc.enable()


async def test_changes_that_are_refused(serve: Serve) -> None:
    """The last model, a name that is taken, and the model of tei.v1 stay."""
    service = await serve(EMBED, CROSS, tei_model="embed")
    change = service.server.models.change
    for wanted, named in (
        ({"wanted": ()}, "last model"),
        ({"add": ModelSettings(id="x", source=EMBED.source, aliases=("cross",))}, "'cross'"),
        ({"remove": "embed"}, "tei_model embed"),
        ({"add": ModelSettings(id="x", source="/nowhere/at/all")}, "x: "),
    ):
        with pytest.raises(ModelChangeError, match=named):
            await change(**wanted)
    assert [one.id for one in service.server.catalog] == ["embed", "cross"]
    await service.check_alive()


async def test_a_model_that_failed_is_tried_again(serve: Serve, tmp_path: Path) -> None:
    """A reload with the same settings loads it."""
    folder = tmp_path / "late"
    late = ModelSettings(id="late", source=str(folder))
    service = await serve(EMBED, late)
    assert service.server.catalog.get("late").problem  # type: ignore[union-attr]
    folder.symlink_to(EMBED.source)
    service.server.reloading.request()
    await until(lambda: service.server.reloading.last)
    await service.client.embed("a text", model="late")


async def test_the_counts_of_a_replaced_model_only_grow(serve: Serve) -> None:
    """Sequences that it has answered stay counted under its name."""
    service = await serve(EMBED)

    def answered() -> float:
        return sum(
            one.value
            for one in service.server.figures.read()
            if one.metric == "embedgrpc.sequences" and one.attributes["fate"] == "answered"
        )

    await service.client.embed("one", "two")
    before = answered()
    assert before >= 2
    change = await service.server.models.change(again=("embed",))
    assert answered() >= before
    await change.closed  # type: ignore[misc]
    await service.client.embed("three")
    await until(lambda: answered() >= before + 1)


async def test_the_command(cache_dir: Path, tmp_path: Path) -> None:
    """`embedgrpc reload` finds the server by its file, and refuses wrong settings itself."""
    config = tmp_path / "embedgrpc.toml"
    held = tmp_path / "server.pid"
    write_config(config, EMBED, pid_file=str(held))

    def reload(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "embedgrpc.cli.main", "reload", *flags],
            capture_output=True,
            text=True,
            check=False,
        )

    async with started("--config", str(config), cache_dir=cache_dir) as server:
        await server.until("serving")
        assert held.read_text() == f"{server.process.pid}\n"
        with pytest.raises(PidFileError, match="another server"), pid_file(held):
            pass
        write_config(config, EMBED, CROSS, pid_file=str(held))
        done = await asyncio.to_thread(reload, "--config", str(config))
        assert (done.returncode, done.stderr) == (0, "")
        assert (await server.until("reloaded"))["added"] == "cross"
        write_config(config, EMBED, pid_file=str(held), max_calls=1)
        done = await asyncio.to_thread(reload, "--config", str(config))
        assert done.returncode == 2
        assert "max_calls" in done.stderr
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert not held.exists()
    done = await asyncio.to_thread(reload, "--pid-file", str(held))
    assert done.returncode == 1
    assert "no server runs" in done.stderr


@pytest.mark.long
async def test_many_reloads_under_load(cache_dir: Path, tmp_path: Path) -> None:
    """SIGHUP again and again, with models that come, change and go: no call fails, memory stays."""
    config = tmp_path / "embedgrpc.toml"
    changed = EMBED.model_copy(update={"max_tokens": 40})
    lists = ((EMBED, CROSS), (changed, SPARSE), (changed, CROSS, NLI), (EMBED, NLI))
    write_config(config, *lists[-1])
    flags = ("--config", str(config), "--http-address", "127.0.0.1:0")
    sizes_mb: list[float] = []
    async with started(*flags, cache_dir=cache_dir) as server:
        await server.until("serving")
        (listening,) = server.events("listening")
        load = Load(listening["address"], listening["http_address"])
        async with load.running():
            for number in range(40):
                write_config(config, *lists[number % len(lists)])
                server.signal(signal.SIGHUP)
                await server.until("reloaded", times=number + 1)
                await load.more(20)
                sizes_mb.append(sample(server.process.pid, 0).rss_mb)
            # Six models in four reloads.
            await server.until("model closed", times=60)
        assert not [one for one in server.events("model closed") if one["calls_cut_off"]]
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    # All models were loaded by then.
    assert max(sizes_mb[20:]) < 1.15 * max(sizes_mb[8:20])


def test_a_file_that_was_left_behind(tmp_path: Path) -> None:
    """A file whose process has ended names no process, and the next server takes it."""
    held = tmp_path / "server.pid"
    held.write_text("1\n")
    with pytest.raises(PidFileError, match="does not run"):
        find_process(held)
    with pid_file(held):
        assert find_process(held) == os.getpid()


@pytest.mark.long
async def test_a_closed_terminal_stops_it(cache_dir: Path) -> None:
    """The system sends SIGHUP then, too: the server stops, and loses no call."""
    pid, terminal = os.forkpty()
    if pid == 0:
        # A server that is started with nohup goes on, and the tests may have been.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ["EMBEDGRPC_LOG_FORMAT"] = "json"
        flags = ["--address", "127.0.0.1:0", "--cache-dir", str(cache_dir), "--device", "cpu"]
        os.execv(  # noqa: S606 - no shell is wanted
            sys.executable,
            [sys.executable, "-m", "embedgrpc.cli.main", "serve", "--model", EMBED.source, *flags],
        )
    said = b""
    while b'"serving"' not in said:
        said += await asyncio.to_thread(os.read, terminal, 65536)
    os.kill(pid, signal.SIGHUP)
    while b'"reloaded"' not in said:
        said += await asyncio.to_thread(os.read, terminal, 65536)
    os.close(terminal)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
