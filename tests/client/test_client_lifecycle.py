import asyncio
import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from typing import cast

import grpc
import pytest

from embedgrpc import client as package
from embedgrpc.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    EmbedGrpcError,
    HealthStatus,
)
from embedgrpc.client.channel import service_config
from tests.client.made_up import vector_of
from tests.client.servicer import Script

_PATIENCE_S = 60.0


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_can_be_pickled(kind: type[Client] | type[AsyncClient], target: str) -> None:
    """A pickle has the settings and no channel."""
    made = kind(
        target,
        timeout_s=7,
        metadata=[("k", "v")],
        health_check=True,
        max_request_bytes=5000,
        max_concurrent_calls=3,
    )
    copy = pickle.loads(pickle.dumps(made))  # noqa: S301 -- from this test
    for name in ("_target", "_timeout_s", "_metadata", "_health_check", "_max_request_bytes"):
        assert getattr(copy, name) == getattr(made, name)
    assert copy._concurrency.max_calls == 3
    assert copy._request_limit.max_bytes == 5000


def test_a_pickled_client_works_after_the_original_connected(target: str) -> None:
    """The copy of a used and closed client is open."""
    with Client(target) as used:
        used.health()
        pickled = pickle.dumps(used)
    with pickle.loads(pickled) as copy:  # noqa: S301 -- from this test
        assert copy.health() is HealthStatus.SERVING


def test_credentials_cannot_be_pickled(target: str) -> None:
    """A pickle never holds a key."""
    with pytest.raises(TypeError, match="reduce"):
        pickle.dumps(Client(target, credentials=grpc.ssl_channel_credentials()))


def test_an_unused_client_is_taken_along_to_another_process(target: str) -> None:
    """A client of the parent process connects in its child."""
    made = Client(target)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_ask, (made,)) == "SERVING"


def _ask(made: Client) -> str:
    return str(made.health())


def test_the_options_of_a_client_are_checked() -> None:
    """Invalid settings are an error when the client is made."""
    with pytest.raises(ValueError, match="target is empty"):
        Client("")
    for timeout_s in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout_s is"):
            Client(timeout_s=timeout_s)


def test_a_closed_client_stays_closed(target: str) -> None:
    """Calls after `close` are an error, with or without a channel."""
    with Client(target) as unused:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        unused.health()

    async def use_closed() -> None:
        async with AsyncClient(target) as used:
            assert await used.health() is HealthStatus.SERVING
        with pytest.raises(RuntimeError, match="closed"):
            await used.health()

    asyncio.run(use_closed())


def test_closing_a_client_ends_the_calls_that_wait(target: str, script: Script) -> None:
    """The call in flight is cancelled; those in the queue fail at once."""
    begun = threading.Event()
    script.on_call = lambda _: begun.set()
    script.hold_calls = True
    client = Client(target, timeout_s=_PATIENCE_S, max_concurrent_calls=1)
    with ThreadPoolExecutor(4) as pool:
        in_flight = pool.submit(client.embed, ["a"])
        assert begun.wait(_PATIENCE_S)
        waiting: list[Future[object]] = []
        for call in (client.health, lambda: list(client.embed_stream(["a"])), client.health):
            waiting.append(pool.submit(call))
            while len(client._concurrency._queue) < len(waiting):
                pass
        client.close()
        with pytest.raises(EmbedGrpcError) as caught:
            in_flight.result()
        assert caught.value.code is grpc.StatusCode.CANCELLED
        for each in waiting:
            with pytest.raises(RuntimeError, match="the client is closed"):
                each.result()
    assert client._concurrency._count == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_closing_an_asynchronous_client_cancels_no_task(
    target: str, script: Script, *, streams: bool
) -> None:
    """A task that was not cancelled never sees CancelledError."""
    script.hold_calls = True
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    script.on_call = lambda _: loop.call_soon_threadsafe(begun.set)
    script.hold_answers = threading.Event()
    client = AsyncClient(target, timeout_s=_PATIENCE_S, max_concurrent_calls=1)
    stream = client.embed_stream(map(str, range(100)))
    if streams:
        await stream.ready()
        in_flight = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(script.window_full.wait)
    else:
        in_flight = asyncio.ensure_future(client.embed(["a"]))  # type: ignore[arg-type] # either
        await begun.wait()
    waiting = [
        asyncio.ensure_future(each)
        for each in (client.health(), anext(client.embed_stream(["a"])), client.health())
    ]
    await asyncio.sleep(0)
    assert len(client._concurrency._queue) == len(waiting)
    await client.close()
    error, *errors = await asyncio.gather(in_flight, *waiting, return_exceptions=True)
    script.hold_answers.set()
    assert isinstance(error, EmbedGrpcError)
    assert error.code is grpc.StatusCode.CANCELLED
    assert [str(each) for each in errors] == ["the client is closed"] * 3
    assert {type(each) for each in errors} == {RuntimeError}
    assert client._concurrency._count == 0


def test_a_stream_that_cannot_start_keeps_no_slot(client_class: type[Client], target: str) -> None:
    """Metadata that gRPC rejects fails each stream at once, and keeps no slot."""
    metadata = [("key", cast("str", 1))]
    client = client_class(target, timeout_s=10, max_concurrent_calls=1, metadata=metadata)
    for _ in range(2):
        with pytest.raises(TypeError):
            next(client.embed_stream(["a"]))
    client.close()


def test_threads_share_a_client(target: str) -> None:
    """Concurrent first calls and streams get their own results."""
    with Client(target) as shared, ThreadPoolExecutor(8) as pool:

        def embed(number: int) -> bool:
            text = f"text {number}"
            (streamed,) = shared.embed_stream([text])
            same = shared.embed([text]).vectors[0] == vector_of(text)
            return bool(same.all() and streamed.vector is not None)

        assert all(pool.map(embed, range(40)))


def test_an_asynchronous_client_belongs_to_one_loop(target: str) -> None:
    """Using it on a second loop is an error; it does not hang."""
    made = AsyncClient(target)

    async def use_and_close() -> None:
        assert await made.health() is HealthStatus.SERVING

    async def use_again() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await made.health()

    with asyncio.Runner() as first:
        first.run(use_and_close())
        with asyncio.Runner() as second:
            thread = threading.Thread(target=second.run, args=(use_again(),))
            thread.start()
            thread.join()
        first.run(made.close())


async def test_a_cancelled_wait_for_a_result_loses_nothing(target: str, script: Script) -> None:
    """After a cancelled wait, the next wait gets the same result."""
    script.hold_answers = threading.Event()
    async with (
        AsyncClient(target) as client,
        client.embed_stream([str(number) for number in range(20)]) as stream,
    ):
        await stream.ready()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(script.window_full.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        script.hold_answers.set()
        assert [result.id async for result in stream] == [str(number) for number in range(20)]


async def test_a_call_that_its_caller_cancels_is_not_tried_again(
    target: str, script: Script
) -> None:
    """The client retries a call that the server cancels, but not one that its caller does."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    script.on_call = lambda _: loop.call_soon_threadsafe(begun.set)
    script.hold_calls = True
    async with AsyncClient(target) as client:
        calling = asyncio.ensure_future(client.embed(["a"]))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        script.hold_calls = False
        assert await client.health() is HealthStatus.SERVING
    assert [type(call).__name__ for call in script.calls] == ["EmbedRequest", "HealthCheckRequest"]


async def test_streams_of_one_client_run_side_by_side(target: str) -> None:
    """Each task gets the results of its own stream."""
    async with AsyncClient(target) as client:

        async def embed(name: str) -> list[str]:
            inputs = [((name, number), "text") for number in range(30)]
            return [result.id[0] async for result in client.embed_stream(inputs)]

        answers = await asyncio.gather(*map(embed, "abcd"))
    assert answers == [[name] * 30 for name in "abcd"]


def test_every_unary_method_is_retried_and_no_stream() -> None:
    """The service config lists the unary methods of the contract."""
    path = resources.files(package).joinpath("service_config.json")
    (policy,) = json.loads(path.read_text())["methodConfig"]
    from embedgrpc.v1 import (  # noqa: PLC0415 -- only this test reads descriptors
        classify_service_pb2,
        embedding_service_pb2,
        model_service_pb2,
        rerank_service_pb2,
        tokenizer_service_pb2,
    )

    unary = {
        (service.full_name, method.name)
        for module in (
            classify_service_pb2,
            embedding_service_pb2,
            model_service_pb2,
            rerank_service_pb2,
            tokenizer_service_pb2,
        )
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming
    }
    assert {(name["service"], name["method"]) for name in policy["name"]} == unary
    assert "healthCheckConfig" not in json.loads(service_config(health_check=False))
    balanced = json.loads(service_config(health_check=True))
    assert balanced["healthCheckConfig"] == {"serviceName": "embedgrpc.v1.EmbeddingService"}
    assert balanced["methodConfig"] == [policy]


@pytest.mark.parametrize("serving", [True, False])
def test_a_health_checking_client_avoids_a_server_that_is_not_serving(
    client_class: type[Client], target: str, script: Script, *, serving: bool
) -> None:
    """With `health_check`, calls go only to servers that are SERVING."""
    script.watch_status = "SERVING" if serving else "NOT_SERVING"
    checking = client_class(target, health_check=True)
    if serving:
        assert len(checking.embed(["a"])) == 1
    else:
        with pytest.raises(ConnectionFailedError):
            checking.embed(["a"])
    checking.close()
    assert script.watched == ["embedgrpc.v1.EmbeddingService"]


def test_public_names_are_importable() -> None:
    """`from embedgrpc.client import *` imports every public name, and others are an error."""
    assert package.__all__ == sorted(package.__all__) == dir(package)
    assert all(hasattr(package, name) for name in package.__all__)
    assert not hasattr(package, "Clent")


async def test_a_cancelled_task_of_a_closed_client_stays_cancelled(
    target: str, script: Script
) -> None:
    """A task that its caller cancels while the client closes raises CancelledError."""
    script.hold_calls = True
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    script.on_call = lambda _: loop.call_soon_threadsafe(begun.set)
    client = AsyncClient(target, timeout_s=_PATIENCE_S)
    calling = asyncio.ensure_future(client.embed(["a"]))
    await begun.wait()
    calling.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await calling


def test_a_process_ends_although_a_stream_is_open(target: str) -> None:
    """Neither endless inputs nor blocked ones keep the interpreter alive."""
    code = """
import itertools, sys, threading
from embedgrpc.client import Client
def blocked():
    yield "a"
    threading.Event().wait()
client = Client(sys.argv[1])
endless = client.embed_stream(map(str, itertools.count()))
waiting = client.embed_stream(blocked(), batch_size=1)
print(next(endless).id, next(waiting).id)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, target], check=True, capture_output=True, text=True, timeout=30
    )
    assert (finished.stdout, finished.stderr) == ("0 0\n", "")
