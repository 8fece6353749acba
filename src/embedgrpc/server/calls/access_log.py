"""One line in the log for a call that has ended, whichever door it came through.

A line has names, counts and times, and what proves nothing: never a text, a vector or a key. The
writing thread of the log writes it, so that neither a call nor the event loop waits for it.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from embedgrpc.engine.errors import Reason
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.telemetry.logs import Journal

_journal = Journal("embedgrpc.access")

_EVENT: Final = "call"
# Of one reason: so many lines at once, and so many a second after that.
_LINES_AT_ONCE: Final = 20
_LINES_PER_S: Final = 2.0
# How long lines that are left out are counted, before one line tells their number.
_SUMMARY_S: Final = 10.0
_DENIALS: Final = frozenset({Reason.UNAUTHENTICATED.value, Reason.PERMISSION_DENIED.value})
# A client that leaves is no fault of anybody.
_LEFT: Final = frozenset({"CANCELLED", "499"})
# Calls that succeeded in part.
_PARTIAL: Final = "PARTIAL"
_SECRETS: Final = frozenset(
    {"authorization", "cookie", "proxy-authorization", "x-api-key", "api-key"}
)
_NAME_CHARACTERS_MAX: Final = 128


@dataclass(slots=True)
class _Allowance:
    """How many more lines of one reason may be written."""

    lines: float = _LINES_AT_ONCE
    at: float = field(default=-float("inf"))

    def take(self, now: float) -> bool:
        self.lines = min(_LINES_AT_ONCE, self.lines + (now - self.at) * _LINES_PER_S)
        self.at = now
        if self.lines < 1:
            return False
        self.lines -= 1
        return True


class AccessLog:
    """Writes lines for calls; an observer of `OpenCalls`. On the event loop.

    Args:
        mode: "off" for denials only; "errors" for calls that failed, at a limited rate for each
            reason; "all"; or the share of the calls that succeeded, from 0 to 1, as a number:
            those that failed are written as with "errors".
        caller_metadata: The metadata that names callers; empty for none.
        clock: Returns seconds.
        draw: Returns a random number from 0 to 1.
    """

    def __init__(
        self,
        mode: str,
        *,
        caller_metadata: str = "",
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._hides_callers = caller_metadata in _SECRETS
        self._clock = clock
        self._draw = draw
        self._allowances: dict[str, _Allowance] = {}
        self._left_out: Counter[str] = Counter()
        self._summary: asyncio.TimerHandle | None = None
        self.mode = mode

    @property
    def mode(self) -> str:
        """What is written; see the arguments."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = mode
        self._writes_errors = mode != "off"
        self._share = {"off": 0.0, "errors": 0.0, "all": 1.0}.get(mode)
        if self._share is None:
            self._share = float(mode)

    def observe(self, call: OpenCall) -> None:
        """Write the line of a call that has ended, if it is wanted."""
        record = call.record
        if record.succeeded and not record.failed_inputs:
            share = self._share
            if share and not record.is_probe and (share >= 1 or self._draw() < share):
                self._write(call, logging.INFO)
            return
        # Probes of services that do not exist are no news after the first ones.
        key = record.reason or (_PARTIAL if record.succeeded else record.status)
        if not (self._writes_errors or key in _DENIALS):
            return
        if self._mode == "all" or self._allowance(key).take(self._clock()):
            is_news = not record.succeeded and record.status not in _LEFT
            self._write(call, logging.WARNING if is_news else logging.INFO)
        else:
            self._leave_out(key)

    def close(self) -> None:
        """Tell how many lines were left out."""
        if self._summary is not None:
            self._summary.cancel()
            self._summarize()

    def _allowance(self, key: str) -> _Allowance:
        # There are as many as there are reasons and statuses.
        found = self._allowances.get(key)
        if found is None:
            found = self._allowances[key] = _Allowance()
        return found

    def _leave_out(self, key: str) -> None:
        self._left_out[key] += 1
        if self._summary is None:
            loop = asyncio.get_running_loop()
            self._summary = loop.call_later(_SUMMARY_S, self._summarize)

    def _summarize(self) -> None:
        self._summary = None
        counts, self._left_out = self._left_out, Counter()
        _journal.write(
            "calls left out of the log",
            logging.WARNING,
            {"calls": counts.total(), "by_reason": dict(counts)},
        )

    def _write(self, call: OpenCall, level: int) -> None:
        record = call.record
        fields: dict[str, Any] = {
            "door": record.door,
            "method": record.method,
            "caller": self._caller(call),
            "model": ",".join([one.id for one in record.models]),
            "inputs": record.inputs,
            "tokens": record.tokens,
            "status": record.status,
            "queue_ms": round(record.queue_s * 1000, 1),
            "total_ms": round(record.total_s * 1000, 1),
        }
        if record.failed_inputs:
            fields["failed_inputs"] = record.failed_inputs
        if record.reason:
            fields["reason"] = record.reason
            if record.label:
                fields["label"] = record.label
        if call.request_id:
            fields["request_id"] = call.request_id
        fields |= record.trace_fields()
        _journal.write(_EVENT, level, fields)

    def _caller(self, call: OpenCall) -> str:
        if self._hides_callers and call.identity is None:
            return "hidden"
        return call.caller.name[:_NAME_CHARACTERS_MAX]
