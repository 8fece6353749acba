"""What becomes of a sequence: each that arrives meets one fate, and every one is counted."""

from enum import StrEnum


class SequenceOutcome(StrEnum):
    """What became of a sequence."""

    ANSWERED = "answered"
    # The model, the tokenizer or the server failed on it, or it was too long.
    FAILED = "failed"
    # Its deadline passed while it waited.
    EXPIRED = "expired"
    # Nobody waits for it any more.
    CANCELLED = "cancelled"
    # Refused at the door: the queue is full; the work ahead outlasts its deadline; the server has
    # been overloaded for a while and keeps its queue short.
    REFUSED_FULL = "refused_full"
    REFUSED_LATE = "refused_late"
    REFUSED_OVERLOADED = "refused_overloaded"
