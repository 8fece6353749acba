"""The outcomes of sequences. Every sequence that arrives has exactly one, which is counted."""

from enum import StrEnum


class SequenceOutcome(StrEnum):
    """The outcome of a sequence; the metric's attribute is called `fate`."""

    ANSWERED = "answered"
    # The model, the tokenizer or the server failed, or the text was too long.
    FAILED = "failed"
    # The deadline passed in the queue.
    EXPIRED = "expired"
    # The result is no longer wanted.
    CANCELLED = "cancelled"
    # Refused by admission: the queue is full; the deadline would pass before the result; the queue
    # is kept short because of an overload.
    REFUSED_FULL = "refused_full"
    REFUSED_LATE = "refused_late"
    REFUSED_OVERLOADED = "refused_overloaded"
