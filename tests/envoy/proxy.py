"""Envoy with the configuration of the example, in front of servers on this machine."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from tests.authority import HOSTS, Authority
from tests.envoy.descriptor import FILE
from tests.envoy.environment import ROOT

EXAMPLE = ROOT / "deploy/envoy/envoy.yaml"
PATIENCE_S = 60.0
_LIMIT = "envoy.filters.http.local_ratelimit"


class Issuer:
    """Who issues tokens, as the example names it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def keys(self) -> dict[str, Any]:
        """Its public keys, as a JSON Web Key Set."""
        key = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [key | {"kid": "1", "alg": "ES256", "use": "sig"}]}

    def issue(self, subject: str, **claims: Any) -> str:
        """Sign a token for an hour; claims replace those of the example."""
        content = {
            "iss": "https://issuer.example/",
            "aud": "embedgrpc",
            "sub": subject,
            "exp": int(time.time()) + 3600,
        }
        return jwt.encode(content | claims, self._key, "ES256", headers={"kid": "1"})


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running Envoy.

    Attributes:
        port: Where it listens, with TLS.
        admin_port: Where its figures are.
        ca_file: What its certificate is verified by.
        issuer: Who issues the tokens that it takes.
    """

    port: int
    admin_port: int
    ca_file: Path
    issuer: Issuer

    async def count(self, name: str) -> int:
        """Return one of its counters, such as "cluster.embedgrpc.upstream_rq_retry"."""
        url = f"http://127.0.0.1:{self.admin_port}/stats?format=json&filter=^{name}$"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            stats = (await response.json())["stats"]
        return sum(int(one["value"]) for one in stats if "value" in one)

    async def until_healthy(self, servers: int) -> None:
        """Wait until it finds that many servers healthy."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.count("cluster.embedgrpc.membership_healthy") != servers:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running_envoy(
    program: Path, folder: Path, upstreams: Sequence[str], *, calls_per_s: int | None = None
) -> AsyncIterator[Proxy]:
    """Run Envoy until the block ends.

    Args:
        program: The program.
        folder: Where its files are written.
        upstreams: HOST:PORT of each server.
        calls_per_s: A limit of each caller in place of the example's; a hundred times as much for
            all together.
    """
    issuer, authority = Issuer(), Authority(folder)
    port, admin_port = free_ports(2)
    pair = authority.issue("envoy", *HOSTS)
    files = {
        "embedgrpc.binpb": FILE.read_bytes(),
        "jwks.json": json.dumps(issuer.keys).encode(),
        "tls.crt": pair.certificate.read_bytes(),
        "tls.key": pair.key.read_bytes(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    text = EXAMPLE.read_text("utf-8").replace("/etc/envoy/", f"{folder}/")
    config = _local(yaml.safe_load(text), port, admin_port, upstreams, calls_per_s)
    (folder / "envoy.json").write_text(json.dumps(config), "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(str(program), "--config-path", str(folder / "envoy.json"), "--log-level", "warning"),
        *("--concurrency", "1", "--disable-hot-restart"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        proxy = Proxy(port, admin_port, authority.file, issuer)
        await _until_ready(proxy, process)
        await proxy.until_healthy(len(upstreams))
        yield proxy
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def _local(
    config: Any, port: int, admin_port: int, upstreams: Sequence[str], calls_per_s: int | None
) -> Any:
    """Return the example with the addresses of this machine."""
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    (listener,) = config["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    (cluster,) = config["static_resources"]["clusters"]
    del cluster["cluster_type"]
    cluster["type"] = "STATIC"
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(number)}}}}
        for host, _, number in (one.rpartition(":") for one in upstreams)
    ]
    if calls_per_s is not None:
        (chain,) = listener["filter_chains"]
        routes = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
        limit = routes["typed_per_filter_config"][_LIMIT]
        limit["token_bucket"] = _bucket(100 * calls_per_s)
        limit["descriptors"][0]["token_bucket"] = _bucket(calls_per_s)
    return config


def _bucket(calls_per_s: int) -> dict[str, Any]:
    return {"max_tokens": calls_per_s, "tokens_per_fill": calls_per_s, "fill_interval": "1s"}


async def _until_ready(proxy: Proxy, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, "it has ended"
            try:
                url = f"http://127.0.0.1:{proxy.admin_port}/ready"
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
