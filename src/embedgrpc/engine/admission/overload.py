"""Distinguishes an overload from a burst.

A burst leaves a long queue that drains by itself, and all of it can be answered. In an overload the
queue stays long because work keeps arriving, and waiting only makes answers late. So a long queue
alone is no overload: it must last for a while, with enough new work to keep it long.

Source: "Controlling Queue Delay", Nichols and Jacobson, 2012 (CoDel): a queue that does not empty
for an interval is a bad queue. The exception for draining queues is our addition.
"""

# How long a queue is observed before each decision.
_WINDOW_S = 1.0
# One window is not enough to call it an overload: a burst may take a moment to arrive.
_WINDOWS = 2
# A queue drains when the work that arrives is less than this share of the work that is done. It is
# empty after twice its length at the latest.
_DRAINING_SHARE = 0.5
# An overload ends when no call was refused for this long.
_CALM_S = 1.0


class OverloadDetector:
    """Observes the queue of one model at each arrival. Used on the event loop alone.

    A queue is at its shortest just before an arrival, so arrivals suffice. Times are in seconds of
    a monotonic clock.
    """

    def __init__(self) -> None:
        self._overloaded = False
        self._began_at = 0.0
        self._done_at_begin = 0
        self._offered = 0
        self._windows = 0
        # When a call was last refused for lack of room, or when the overload was detected.
        self._refused_at = -_CALM_S

    def is_active(self, now: float) -> bool:
        """Return whether the server is overloaded."""
        return self._overloaded and now - self._refused_at < _CALM_S

    def arrive(self, now: float, *, is_long: bool, done: int) -> bool:
        """Record the arrival of a call, before it is accepted or refused.

        Args:
            now: The time.
            is_long: Whether the queue is long.
            done: Tokens that have left the queue since the start, by the estimates that
                `let_in` and `refuse` also use.

        Returns:
            Whether the server is overloaded.
        """
        if self._overloaded and now - self._refused_at >= _CALM_S:
            self._overloaded = False
        if not self._overloaded and not is_long:
            self._windows = 0
            self._begin(now, done)
        elif now - self._began_at >= _WINDOW_S:
            self._judge(now, done - self._done_at_begin)
            self._begin(now, done)
        return self._overloaded

    def let_in(self, tokens: int) -> None:
        """Record that a call with this many tokens was accepted."""
        self._offered += tokens

    def refuse(self, now: float, tokens: int) -> None:
        """Record that there was no room for a call: an overload starts or continues."""
        self._offered += tokens
        self._overloaded = True
        self._refused_at = now

    def _begin(self, now: float, done: int) -> None:
        self._began_at, self._done_at_begin = now, done
        self._offered = 0

    def _judge(self, now: float, done: int) -> None:
        is_draining = self._offered < _DRAINING_SHARE * done
        if self._overloaded:
            self._overloaded = not is_draining
            self._windows = 0
            return
        self._windows = 0 if is_draining else self._windows + 1
        if self._windows >= _WINDOWS:
            self._overloaded = True
            self._refused_at = now
