"""The log lines about overloads."""

import logging
from typing import Any

import pytest

from embedgrpc.engine.errors import OverloadedError
from embedgrpc.server.telemetry.overload_log import OverloadLog
from tests.server.conftest import Serve
from tests.server.service import EMBED


async def test_an_overload_begins_once_and_ends_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it comes and goes meanwhile; the end tells how much was refused."""
    caplog.set_level(logging.INFO)
    service = await serve(EMBED, max_queued_inputs=8)
    admission = service.admission()
    now = [0.0]
    log = OverloadLog(service.server.catalog, clock=lambda: now[0])
    admission._clock = lambda: now[0]

    def events() -> list[Any]:
        return [one for one in caplog.records if one.message.startswith("overload")]

    def refuse() -> None:
        with pytest.raises(OverloadedError):
            admission.admit(inputs=4, tokens=8, remaining_s=60)

    log.look()
    held = admission.admit(inputs=7, tokens=7 * 40, remaining_s=60)
    for now[0] in (0.0, 0.5, 4.0, 4.5):
        admission._overload.refuse(now[0], 1)
        refuse()
        log.look()
    assert [one.message for one in events()] == ["overload began"]
    began = events()[0]
    assert (began.model, began.queued_inputs, began.queued_tokens) == ("embed", 7, 280)
    assert began.queue_s > 0
    held.release_all()
    now[0] = 13.0
    log.look()
    assert len(events()) == 1
    now[0] = 15.0
    log.look()
    ended = events()[1]
    assert (ended.message, ended.model, ended.seconds) == ("overload ended", "embed", 4.5)
    # The first refusal came before the first look.
    assert ended.refused_inputs == 3 * 4
    now[0] = 30.0
    log.look()
    assert len(events()) == 2
