import asyncio

from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.service import PATIENCE_S, Service


def _values(service: Service, metric: str) -> dict[str, float]:
    """Return the values of a metric, by work class."""
    return {
        one.attributes["work_class"]: one.value
        for one in service.server.figures.read()
        if one.metric == metric
    }


async def test_admitted_work_is_counted_while_it_lasts(serve: Serve, backend: HashBackend) -> None:
    """Sequences and tokens count by work class from admission until the response."""
    service = await serve(backend=backend)
    backend.hold()
    call = asyncio.ensure_future(service.client.embed("a", "b"))
    assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    assert _values(service, "embedgrpc.sequences.admitted") == {"interactive": 2, "bulk": 0}
    assert _values(service, "embedgrpc.tokens.admitted")["interactive"] >= 2
    backend.release()
    await call
    assert _values(service, "embedgrpc.sequences.admitted") == {"interactive": 0, "bulk": 0}
    assert _values(service, "embedgrpc.tokens.admitted") == {"interactive": 0, "bulk": 0}
