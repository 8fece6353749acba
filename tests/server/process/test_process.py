import asyncio
import signal
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from embedgrpc.v1 import model_service_pb2 as models
from tests.server.connections.raw_http2 import headers, raw_connection
from tests.server.failures import failure_of
from tests.server.server_process import Process, started
from tests.server.service import EMBED, PATIENCE_S, Client
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING, Watcher

# A stop that waits for its calls would outlast the test.
LONG_GRACE = ("--shutdown-grace-s", "3600", "--shutdown-timeout-s", "3700")
EMBED_PATH = b"/embedgrpc.v1.EmbeddingService/Embed"
_CALLS = 200


async def test_a_stop_under_load_loses_nothing(cache_dir: Path) -> None:
    """SIGTERM: NOT_SERVING first, calls go on until load balancers notice, then exit code 0."""
    async with started("--drain-delay-s", "0.5", cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        client = Client(address)
        async with client.channel:
            watcher = Watcher(client, EMBEDDING)
            assert await watcher.next() == SERVING
            noticed = asyncio.Event()
            answered_after = [asyncio.Event() for _ in range(8)]

            async def call_on_and_on(answered: asyncio.Event) -> grpc.aio.AioRpcError:
                while True:
                    knew = noticed.is_set()
                    try:
                        await client.embed("a text under load")
                    except grpc.aio.AioRpcError as error:
                        return error
                    if knew:
                        answered.set()

            load = [asyncio.ensure_future(call_on_and_on(event)) for event in answered_after]
            await client.embed("load has begun")
            server.signal(signal.SIGTERM)
            assert await watcher.next() == NOT_SERVING
            noticed.set()
            # Clients that have not noticed yet are served.
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(event.wait() for event in answered_after))
            failures = await asyncio.gather(*load)
        # Each client's first failure is a call that began too late; none was cut off.
        assert {failure.code() for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
        assert await server.ended() == 0
        assert server.events("stopped")
        assert not [line for line in server.lines if '"level": "error"' in line]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["TERM", "INT"],
)
async def test_a_second_signal_ends_it_at_once(
    cache_dir: Path, number: signal.Signals, code: int
) -> None:
    """The first signal waits for a call that never ends; the second does not."""
    async with started(*LONG_GRACE, cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        async with raw_connection(address) as connection:
            # Without a message the call stays in flight.
            await connection.send(headers(EMBED_PATH), end=False)
            await connection.ping()
            server.signal(number)
            await server.until("stopping")
            server.signal(number)
            assert await server.ended() == code


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT],
    ids=["TERM", "INT"],
)
async def test_one_signal_is_enough(cache_dir: Path, number: signal.Signals) -> None:
    """Without calls in flight, either signal ends the server cleanly, even with health watches."""
    async with started(*LONG_GRACE, cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        client = Client(address)
        async with client.channel:
            watcher = Watcher(client, "")
            assert await watcher.next() == SERVING
            server.signal(number)
            assert await watcher.next() == NOT_SERVING
            assert (await failure_of(watcher.call.read())).reason == "SHUTTING_DOWN"
            assert await server.ended() == 0


async def test_a_signal_before_it_is_ready(tmp_path: Path) -> None:
    """A stop while models load is clean, too."""
    async with started(cache_dir=tmp_path / "cold") as server:
        await server.until("listening")
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.events("stopped")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-inputs", "0"),
        pytest.param(("--max-inputs", "many"), marks=pytest.mark.slow),
        pytest.param(
            ("--max-stream-batch-inputs", "8", "--max-stream-in-flight-inputs", "4"),
            marks=pytest.mark.slow,
        ),
        ("--config", "/nowhere/embedgrpc.toml"),
        pytest.param(("--model", "same=./a", "--model", "same=./b"), marks=pytest.mark.slow),
    ],
)
async def test_invalid_settings(cache_dir: Path, arguments: tuple[str, ...]) -> None:
    """An invalid setting gives one line that names it, and exit code 2."""
    async with started(*arguments, cache_dir=cache_dir) as server:
        assert await server.ended() == 2
        assert len(server.problems) == len(server.lines) == 1


async def test_an_address_in_use(cache_dir: Path) -> None:
    """A second server reports in one line that the address is in use, and does not share it."""
    async with started(cache_dir=cache_dir) as first:
        address = (await first.until("listening"))["address"]
        async with started(cache_dir=cache_dir, address=address) as second:
            assert await second.ended() not in (0, None)
            (problem,) = second.problems
            assert address in problem
        await first.until("serving")
        client = Client(address)
        async with client.channel:
            await client.embed("the first still serves")


async def test_a_unix_socket(cache_dir: Path, tmp_path: Path) -> None:
    """The server listens on a socket file, and no second server takes it from a running one.

    The file of a killed server does not block the next one, which removes it when it stops.
    """
    path = tmp_path / "s"
    address = f"unix:{path}"
    client = Client(address)
    async with client.channel, started(cache_dir=cache_dir, address=address) as first:
        assert (await first.until("serving"))["address"] == address
        assert path.is_socket()
        async with started(cache_dir=cache_dir, address=address) as second:
            assert await second.ended() == 1
            (problem,) = second.problems
            assert "another server" in problem
        await client.embed("the first still serves")
        first.signal(signal.SIGKILL)
        await first.ended()
    assert path.is_socket()
    client = Client(address)
    async with client.channel, started(cache_dir=cache_dir, address=address) as server:
        await server.until("serving")
        await client.embed("a text")
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        pytest.param("127.0.0.1:70000", "the port must not be above 65535", marks=pytest.mark.slow),
        pytest.param(
            "no-such-host.invalid:0", "host 'no-such-host.invalid'", marks=pytest.mark.slow
        ),
        ("unix:/nowhere/at/all/s", "there is no such folder"),
    ],
)
async def test_an_invalid_address(cache_dir: Path, address: str, cause: str) -> None:
    """One line says what is wrong; the exit code means that other settings would help."""
    async with started(cache_dir=cache_dir, address=address) as server:
        assert await server.ended() == 2
        (problem,) = server.problems
        assert cause in problem


async def test_a_wrong_variable_of_telemetry(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalid variable is refused in one line, like any other setting."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "bogus")
    async with started(cache_dir=cache_dir, telemetry=True) as server:
        assert await server.ended() == 2
        (problem,) = server.problems
        assert "OTEL_TRACES_EXPORTER" in problem


async def test_a_model_that_cannot_be_loaded_leaves_the_others(
    cache_dir: Path, tmp_path: Path
) -> None:
    """It is reported and its calls refused; the others are served, and the process ends cleanly."""
    sources = ("--model", f"missing={tmp_path / 'nothing'}", "--model", f"embed={EMBED.source}")
    async with started(*sources, cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        (failed,) = server.events("model failed to load")
        assert failed["model"] == "missing"
        client = Client(address)
        async with client.channel:
            failure = await failure_of(client.embed("a text"))
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert failure.reason == "BACKEND_UNAVAILABLE"
            await client.embed("a text", model="embed")
            listing = await client.models.ListModels(models.ListModelsRequest())
            assert {model.id: model.state for model in listing.models} == {
                "embed": models.MODEL_STATE_READY,
                "missing": models.MODEL_STATE_FAILED,
            }
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0


async def test_no_model_can_be_loaded(cache_dir: Path, tmp_path: Path) -> None:
    """With nothing to serve, the server ends, with one line for each model."""
    sources = ("--model", f"a={tmp_path / 'nothing'}", "--model", f"b={tmp_path / 'void'}")
    async with started(*sources, cache_dir=cache_dir) as server:
        assert await server.ended() not in (0, None)
        _check_problems(server, "a", "b")


def _check_problems(server: Process, *models_in_order: str) -> None:
    named = [line.removeprefix("embedgrpc: ").partition(":")[0] for line in server.problems]
    assert named == list(models_in_order)


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of threads is read from /proc")
@pytest.mark.parametrize(
    ("experiments", "flags", "apart"),
    [
        (None, (), True),
        (None, ("--trusted-network",), False),
        pytest.param("", ("--trusted-network",), False, marks=pytest.mark.slow),
        pytest.param("multiping", ("--trusted-network",), False, marks=pytest.mark.slow),
        pytest.param("event_engine_listener", ("--trusted-network",), True, marks=pytest.mark.slow),
        pytest.param("-event_engine_listener", (), False, marks=pytest.mark.slow),
    ],
)
async def test_threads_that_read_connections(
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    experiments: str | None,
    flags: tuple[str, ...],
    *,
    apart: bool,
) -> None:
    """Separate threads read connections, unless the network is trusted.

    The environment takes precedence; where it contradicts the setting, there is a warning.
    """
    if experiments is None:
        monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    else:
        monkeypatch.setenv("GRPC_EXPERIMENTS", experiments)
    async with started(*flags, cache_dir=cache_dir) as server:
        client = Client((await server.until("serving"))["address"])
        async with client.channel:
            await client.status("")
            # The least of some rounds, as timers run on these threads, too.
            used_ns = min([await _time_of_calls(client, server.process.pid) for _ in range(6)])
        warned = bool(server.events("the environment overrides trusted_network"))
    # Reading a call takes 20 us and more.
    assert (used_ns > _CALLS * 10_000) == apart
    assert warned == (apart == bool(flags))


async def _time_of_calls(client: Client, pid: int) -> int:
    """Return the CPU time that gRPC's own threads use for some calls, in nanoseconds."""
    before = _run_ns(pid, "event_engine")
    for _ in range(_CALLS):
        await client.status("")
    return _run_ns(pid, "event_engine") - before


def _run_ns(pid: int, name: str) -> int:
    """Return the CPU time of all threads of a name, in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for task in tasks
        if (task / "comm").read_text().strip() == name
    )
