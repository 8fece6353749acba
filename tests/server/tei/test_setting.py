"""The setting that turns tei.v1 on."""

from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from embedgrpc.server.settings.settings import Settings
from tests.server.conftest import Serve
from tests.server.failures import failure_of


async def test_without_the_setting_there_is_nothing(serve: Serve) -> None:
    """The methods are unknown, and so is their health."""
    service = await serve()
    failure = await failure_of(service.client.send_bytes("/tei.v1.Embed/Embed", b""))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    unknown = await failure_of(service.client.status("tei.v1.Embed"))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


def test_the_model_must_exist(tmp_path: Path) -> None:
    """A name that no model has is refused at start."""
    with pytest.raises(ValidationError, match="tei_model names no model; there are: all-MiniLM"):
        Settings(cache_dir=tmp_path, tei_model="absent")
