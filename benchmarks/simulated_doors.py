"""The admission of calls: the server's, and that of common servers."""

from collections.abc import Callable, Sequence

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.settings import Settings


class Door:
    """Admits calls while there is room, whatever their class, like most servers.

    Args:
        settings: The limits of the queue.
        batch_tokens: The tokens of a full batch.
        clock: Returns the time, in seconds.

    Attributes:
        admission: The account of the admitted calls.
    """

    def __init__(
        self, settings: Settings, *, batch_tokens: int, clock: Callable[[], float]
    ) -> None:
        self.admission = Admission(
            max_inputs=settings.max_queued_inputs,
            max_tokens=settings.max_queued_tokens,
            batch_tokens=batch_tokens,
            max_queue_s=settings.max_queue_s,
            clock=clock,
        )
        self._clock = clock

    def admit(self, call: Call, lengths: Sequence[int]) -> Reservation | None:
        """Reserve room for the texts of a call; return None if there is none."""
        return self._admit_if_room(call, lengths)

    def release(
        self, reservation: Reservation, inputs: int, tokens: int, fate: SequenceOutcome
    ) -> None:
        """Return the room of texts that have an outcome."""
        reservation.release(inputs, tokens, fate)

    def _admit_if_room(self, call: Call, lengths: Sequence[int]) -> Reservation | None:
        # All calls share the limits of one class.
        return self.admission.admit_if_room(
            WorkClass.BULK, inputs=len(lengths), tokens=sum(lengths), caller=call.caller
        )


class OwnDoor(Door):
    """Admits calls like the server, but with exact token counts from the start."""

    def admit(self, call: Call, lengths: Sequence[int]) -> Reservation | None:
        """Reserve room for the texts of a call, or refuse it; refused bulk work is tried again."""
        if call.work_class is WorkClass.BULK:
            return self._admit_if_room(call, lengths)
        try:
            return self.admission.admit(
                inputs=len(lengths),
                tokens=sum(lengths),
                remaining_s=call.deadline - self._clock(),
                caller=call.caller,
            )
        except OverloadedError:
            return None
