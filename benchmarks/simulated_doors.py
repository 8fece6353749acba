"""What lets work in, or does not."""

from collections.abc import Callable, Sequence

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.settings import Settings


class Door:
    """Lets work in while there is room, whatever its class, as most servers do.

    Args:
        settings: How much room there is.
        batch_tokens: The tokens of a full batch.
        clock: Tells the time, in seconds.

    Attributes:
        admission: Counts what is inside.
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
        """Takes room for texts, if there is any."""
        return self._admit_if_room(call, lengths)

    def release(
        self, reservation: Reservation, inputs: int, tokens: int, fate: SequenceOutcome
    ) -> None:
        """Gives back the room of texts that met their fate."""
        reservation.release(inputs, tokens, fate)

    def _admit_if_room(self, call: Call, lengths: Sequence[int]) -> Reservation | None:
        # The bounds of the one class are all there is.
        return self.admission.admit_if_room(
            WorkClass.BULK, inputs=len(lengths), tokens=sum(lengths), caller=call.caller
        )


class OwnDoor(Door):
    """Lets work in as the server does; that the tokens are only guessed at first is left out."""

    def admit(self, call: Call, lengths: Sequence[int]) -> Reservation | None:
        """Takes room for texts, or refuses them; bulk work may come again."""
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
