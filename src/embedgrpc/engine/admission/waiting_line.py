"""The line in which work waits for room instead of being refused."""

import asyncio
from collections import deque
from dataclasses import dataclass

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.work_class import WorkClass


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    caller: str
    inputs: int
    tokens: int
    since: float
    room: "asyncio.Future[Reservation]"


class WaitingLine:
    """Admits work as soon as there is room. The caller with the least work inside goes first.

    Work of one caller goes in order of arrival. Used on the event loop alone.

    Args:
        admission: Admits the work; its ledger's `on_room` is set.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        admission.ledger.on_room = self._let_in
        self._waiting: dict[WorkClass, deque[_Waiter]] = {one: deque() for one in WorkClass}

    async def enter(
        self, work_class: WorkClass, *, inputs: int, tokens: int, caller: str
    ) -> Reservation:
        """Wait for room and reserve it.

        Args:
            work_class: The class whose limits apply.
            inputs: Number of inputs.
            tokens: Estimated number of tokens.
            caller: The caller it belongs to.
        """
        room = asyncio.get_running_loop().create_future()
        waiter = _Waiter(caller, inputs, tokens, self._admission.now(), room)
        self._waiting[work_class].append(waiter)
        self._let_in()
        try:
            return await waiter.room
        except asyncio.CancelledError:
            if waiter.room.done() and not waiter.room.cancelled():
                waiter.room.result().release_all()
            else:
                self._waiting[work_class].remove(waiter)
                self._let_in()
            raise

    def _let_in(self) -> None:
        for work_class, waiting in self._waiting.items():
            # Cancelled waiters stay here until their task runs again.
            while still := [one for one in waiting if not one.room.done()]:
                # No other work overtakes this one, however small: a large job might never enter.
                first = min(
                    still,
                    key=lambda one: self._admission.ledger.held_tokens(work_class, one.caller),
                )
                reservation = self._admission.admit_if_room(
                    work_class,
                    inputs=first.inputs,
                    tokens=first.tokens,
                    caller=first.caller,
                    waits_since=first.since,
                )
                if reservation is None:
                    break
                waiting.remove(first)
                first.room.set_result(reservation)
            else:
                if work_class is WorkClass.INTERACTIVE:
                    self._admission.nobody_waits()
