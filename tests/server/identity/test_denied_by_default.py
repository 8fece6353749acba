"""Every method and every path wants credentials, but for those that must not."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from embedgrpc.server.caller import PUBLIC
from embedgrpc.server.caller import Service as Allowed
from embedgrpc.server.calls.method_needs import need_of
from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.exchange import Route
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile, answer_of, bearer, by_grpc
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for

KSERVE = "/inference.GRPCInferenceService"
OPEN_METHODS = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    f"{KSERVE}/ServerLive",
    f"{KSERVE}/ServerReady",
    f"{KSERVE}/ModelReady",
}
# What a method says that has read a message which is none.
READ = {"INVALID_ARGUMENT", "UNIMPLEMENTED"}
# The model decides what it needs.
FOR_ANY_MODEL = {f"{KSERVE}/ModelInfer", f"{KSERVE}/ModelStreamInfer"}
OPEN_PATHS = {"/", "/ping", "/health", "/health/live", "/health/ready", "/health/status"}
# What the setting `public` opens.
REFLECTION = "/grpc.reflection."
PUBLIC_PATHS = {"/docs": "docs", "/openapi.json": "docs", "/metrics": "metrics"}


class Registry:
    """Stands for a gRPC server, and keeps what is added to it."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Keep the methods of generic handlers."""
        for handler in handlers:
            self.methods |= set(handler._method_handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Keep the methods of a service; generated code adds each service both ways."""
        assert {f"/{service}/{name}" for name in handlers} <= self.methods


def methods_of(service: Service) -> set[str]:
    """All methods that a server has."""
    registry = Registry()
    service.server._add_services(registry)  # type: ignore[arg-type] # what stands for a server
    return registry.methods


async def call_method(service: Service, method: str, *metadata: tuple[str, str]) -> Any:
    """Call any method with a message that no method takes; return how it ended."""
    raw: Any = service.client.channel.unary_stream(method)
    try:
        _ = [one async for one in raw(b"\xff", metadata=metadata, timeout=PATIENCE_S)]
    except grpc.aio.AioRpcError as error:
        return answer_of(error)
    return None


async def call_route(service: Service, route: Route, *headers: tuple[str, str]) -> Any:
    """Call a path; its body, if it takes one, is larger than any may be."""
    path = route.path.replace("{id}", "embed")
    given = [*headers]
    if route.method == "POST":
        # A server that wants to read the body refuses this one for its size.
        given += [("content-type", "application/json"), ("content-length", str(2**30))]
        given.append(("expect", "100-continue"))
    return await HttpClient(service).send(route.method, path, headers=given)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyFile, Mapping[str, str]]:
    """A file of keys: of somebody who may do everything, and of somebody for each service."""
    file = KeyFile(tmp_path_factory.mktemp("keys"))
    found = {
        "anybody": file.add("anybody"),
        "admin": file.add("admin", 'scopes = ["admin"]'),
    }
    for one in Allowed:
        found[one] = file.add(f"only-{one}", f'services = ["{one.value}"]')
    return file, found


@pytest.fixture(scope="module")
def keys_by_name(known: tuple[KeyFile, Mapping[str, str]]) -> Mapping[str, str]:
    """The keys that the server knows."""
    return known[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    cache_dir: Path, known: tuple[KeyFile, Mapping[str, str]]
) -> AsyncIterator[Service]:
    """A server with all of its doors."""
    settings = settings_for(
        EMBED,
        CROSS,
        cache_dir=cache_dir,
        http_address="127.0.0.1:0",
        tei_model="embed",
        kserve=True,
        admin=True,
        **known[0].settings,
    )
    async with serving(settings) as one:
        yield one


@pytest.mark.asyncio(loop_scope="module")
async def test_every_method_wants_credentials(service: Service) -> None:
    """All that are registered, those of gRPC's own services and of tei.v1 too, but for health.

    They are refused before their message is read: it is none.
    """
    methods = methods_of(service)
    assert len(methods) > 30
    for part in (
        "tei.v1.Embed/EmbedStream",
        "GRPCInferenceService/ModelInfer",
        "grpc.reflection.v1alpha",
        "embedgrpc.v1.Rerank",
    ):
        assert [one for one in methods if part in one], part
    for method in sorted(methods - OPEN_METHODS):
        assert await call_method(service, method) == ("UNAUTHENTICATED", "NO_CREDENTIALS"), method
    for method in OPEN_METHODS:
        answer = await call_method(service, method)
        assert answer == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE"), method


@pytest.mark.asyncio(loop_scope="module")
async def test_every_path_wants_credentials(service: Service) -> None:
    """All but the probes, in the form of their dialects, and before their bodies are read."""
    for route in all_routes():
        reply = await call_route(service, route)
        if route.path in OPEN_PATHS and route.method == "GET":
            assert reply.status == 200, route.path
        else:
            assert reply.status == 401, (route.method, route.path)
            assert reply.headers["www-authenticate"] == 'Bearer realm="embedgrpc"'
            assert "credentials" in reply.body.decode()


@pytest.mark.asyncio(loop_scope="module")
async def test_every_method_takes_a_key(service: Service, keys_by_name: Mapping[str, str]) -> None:
    """With a key that may do everything each method goes on to read its message."""
    key = keys_by_name["anybody"]
    for method in sorted(methods_of(service)):
        answer = await call_method(service, method, bearer(key))
        if need_of(method).scope:
            assert answer == ("PERMISSION_DENIED", "SCOPE_MISSING"), (method, answer)
            answer = await call_method(service, method, bearer(keys_by_name["admin"]))
        assert answer is None or answer.status in READ, (method, answer)
    for route in all_routes():
        reply = await call_route(service, route, ("x-api-key", key))
        # Metrics need a scope.
        expected = {"POST": 413}.get(route.method, 403 if route.need.scope else 200)
        assert reply.status == expected, (route.method, route.path, reply.body)


@pytest.mark.parametrize("allowed", [Allowed.EMBED, Allowed.MODELS])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_may_be_for_one_service(
    service: Service, keys_by_name: Mapping[str, str], allowed: Allowed
) -> None:
    """What else it is not for is denied, through every door."""
    key = keys_by_name[allowed]
    seen = set()
    for method in sorted(methods_of(service) - OPEN_METHODS):
        need = need_of(method)
        answer = await call_method(service, method, bearer(key))
        if need.service in (None, allowed):
            expected = {"PERMISSION_DENIED"} if need.scope else READ
            assert answer is None or answer.status in expected, (method, answer)
        else:
            assert answer == ("PERMISSION_DENIED", "SERVICE_DENIED"), (method, answer)
        seen.add(need.service)
        assert (
            need.service or need.scope or method in FOR_ANY_MODEL or method.startswith(REFLECTION)
        ), method
    assert seen == {*Allowed, None}
    for route in all_routes():
        if route.need == PUBLIC:
            continue
        reply = await call_route(service, route, bearer(key))
        may = route.need.service in (None, allowed) and route.need.scope is None
        if may or (route.method, route.path) == ("POST", "/"):
            assert reply.status in (200, 413), (route.path, reply.body)
        else:
            assert reply.status == 403, (route.path, reply.body)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_path_for_any_model_goes_by_the_model(
    service: Service, keys_by_name: Mapping[str, str]
) -> None:
    """POST / embeds or classifies: only the body and the model tell."""
    embeds, ranks = keys_by_name[Allowed.EMBED], keys_by_name[Allowed.RERANK]
    http = HttpClient(service)
    texts, documents = {"inputs": "a text"}, {"query": "a", "texts": ["b"]}
    ranking = {**documents, "truncate": True}
    for key, body, model, status in (
        (embeds, texts, "embed", 200),
        (embeds, texts, "cross", 403),
        (embeds, ranking, "cross", 403),
        (ranks, ranking, "cross", 200),
        (ranks, texts, "cross", 403),
        (ranks, texts, "embed", 403),
    ):
        headers = {"authorization": f"Bearer {key}", "embedgrpc-model": model}
        reply = await http.post("/", body, **headers)
        assert reply.status == status, (body, model, reply.body)


@pytest.mark.parametrize("public", ["reflection", "docs,metrics"])
async def test_some_things_may_be_public(
    serve: Callable[..., Awaitable[Service]], keys: KeyFile, public: str
) -> None:
    """The setting opens what it names, and nothing else."""
    service = await serve(http_address="127.0.0.1:0", public=public, **keys.settings)
    for method in sorted(methods_of(service) - OPEN_METHODS):
        answer = await call_method(service, method)
        is_open = public == "reflection" and method.startswith(REFLECTION)
        expected = "INVALID_ARGUMENT" if is_open else "UNAUTHENTICATED"
        assert answer.status == expected, method
    for route in all_routes():
        reply = await call_route(service, route)
        is_open = route.need == PUBLIC or PUBLIC_PATHS.get(route.path, "none") in public
        assert reply.status == (200 if is_open else 401), route.path


async def test_without_settings_credentials_are_not_looked_at(
    serve: Callable[..., Awaitable[Service]],
) -> None:
    """Clients that must send some may send anything."""
    service = await serve(http_address="127.0.0.1:0")
    for metadata in (bearer("none"), ("authorization", "Basic ?"), ("x-api-key", "")):
        assert await call_method(service, "/embedgrpc.v1.ModelService/GetServer", metadata)
        reply = await HttpClient(service).send("GET", "/v1/models", headers=[metadata])
        assert reply.status == 200


async def test_the_address_of_metrics_wants_a_scope(
    serve: Callable[..., Awaitable[Service]], keys: KeyFile
) -> None:
    """Of its own port, as of the HTTP port."""
    plain, scoped = keys.add("plain"), keys.add("prometheus", 'scopes = ["metrics"]')
    service = await serve(
        http_address="127.0.0.1:0", metrics_address="127.0.0.1:0", **keys.settings
    )
    for address in (service.server.http_address, service.server.metrics_address):
        for given, status in (([], 401), ([bearer(plain)], 403), ([bearer(scoped)], 200)):
            async with aiohttp.request(
                "GET", f"http://{address}/metrics", headers=dict(given)
            ) as response:
                assert response.status == status


async def test_without_credentials_no_model_is_named(
    serve: Callable[..., Awaitable[Service]], keys: KeyFile
) -> None:
    """Whether a model is ready is open, as all probes are; which models there are is not."""
    lists, embeds = keys.add("lists"), keys.add("embeds", 'services = ["embed"]')
    service = await serve(kserve=True, **keys.settings)
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(service.client.channel)
    assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name="embed"))).ready
    assert not (await stub.ModelReady(service_pb2.ModelReadyRequest(name="other"))).ready
    for key, message in ((lists, "no model 'other'; served: embed"), (embeds, "no model 'other'")):
        assert (await by_grpc(service, bearer(key), model="other")).message == message
