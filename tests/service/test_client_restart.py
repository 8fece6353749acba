"""The client and a server that is killed and started again."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client
from embedgrpc.client.engines import EmbedBatch
from tests.service.conftest import FIXTURES

pytestmark = pytest.mark.slow

_PATIENCE_S = 120.0
_TEXTS = [f"text number {number}" for number in range(3000)]
_KILL_AFTER = 500


def test_a_killed_server_loses_nothing(cache_dir: Path) -> None:
    """After `kill -9` and a start at the same address, the array is that of an undisturbed run."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    servers = [_start(target, cache_dir)]
    try:
        with Client(target, timeout_s=_PATIENCE_S) as client:
            client.wait_until_ready(_PATIENCE_S)
            undisturbed = client.encode(_TEXTS)
            restarting: list[threading.Thread] = []

            def restart() -> None:
                os.kill(servers[-1].pid, signal.SIGKILL)
                servers[-1].wait()
                servers.append(_start(target, cache_dir))

            def texts() -> Iterator[str]:
                yield from itertools.islice(_TEXTS, _KILL_AFTER)
                restarting.append(threading.Thread(target=restart))
                restarting[0].start()
                yield from _TEXTS[_KILL_AFTER:]

            vectors = client.encode(texts(), reconnect_s=_PATIENCE_S)
            restarting[0].join()
        np.testing.assert_allclose(vectors, undisturbed, atol=1e-5)
        assert len(servers) == 2
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_a_batch_of_a_data_engine_waits_for_a_killed_server(cache_dir: Path) -> None:
    """The connection breaks under a batch, or is gone before it: each row has its vector."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    servers = [_start(target, cache_dir)]
    embed = EmbedBatch(target, patience_s=_PATIENCE_S)
    try:
        undisturbed = embed({"text": np.array(_TEXTS, object)})["embedding"]

        def restart() -> None:
            os.kill(servers[-1].pid, signal.SIGKILL)
            servers[-1].wait()
            servers.append(_start(target, cache_dir))

        restarting = threading.Thread(target=restart)
        restarting.start()
        made = embed({"text": np.array(_TEXTS, object)})
        restarting.join()
        assert not any(made["error"])
        np.testing.assert_allclose(made["embedding"], undisturbed, atol=1e-5)
        assert len(servers) == 2
    finally:
        embed.close()
        for server in servers:
            server.kill()
            server.wait()


def _start(target: str, cache_dir: Path) -> "subprocess.Popen[Any]":
    flags = ("--model", str(FIXTURES / "bert-mean"), "--address", target)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "embedgrpc.cli.main", "serve", "--device", "cpu"),
            *("--cache-dir", str(cache_dir), *flags),
        ],
        stderr=subprocess.DEVNULL,
    )
