"""A server whose model is another server's, over this protocol."""

import pytest

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.conftest import Serve
from tests.server.service import FIXTURES


@pytest.mark.long
async def test_another_server_can_use_the_service_as_a_source(serve: Serve) -> None:
    """It sends its texts, and has the same vectors and a health of its own."""
    name = "gemma-dense"
    back = await serve(ModelSettings(id=name, source=str(FIXTURES / name)), kserve=True)
    source = f"triton:{back.address}/{name}"
    front = await serve(ModelSettings(id="far", source=source, normalize=False, max_tokens=1000))
    texts = ("It is red.", "The café opens at nine. 東京")
    expected = await back.client.embed(*texts)
    found = await front.client.embed(*texts)
    assert [one.dense for one in found.embeddings] == [one.dense for one in expected.embeddings]
    assert found.model == "far"
    statistics = back.server._statistics.totals(name)
    assert statistics.success.count > 1
