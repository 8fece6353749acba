"""Tells an overload from a burst.

A burst leaves a long queue behind that drains by itself: all of it can be answered. In an overload
the queue stays long because work keeps coming; then waiting only makes answers late. So a long
queue alone is no overload: it must stand for a while although as much comes as would keep it long.

Source: "Controlling Queue Delay", Nichols and Jacobson, 2012 (CoDel): a queue that does not empty
for an interval is a bad queue. That a draining queue is no bad one is our addition.
"""

# How long a queue is observed before it is judged.
_WINDOW_S = 1.0
# A burst may take a moment to arrive, so that one window is not enough to call it an overload.
_WINDOWS = 2
# A queue drains when less than this share of what is done comes in the same time. It is empty
# again after twice its length at the latest.
_DRAINING_SHARE = 0.5
# The overload is over when no call was refused for this long.
_CALM_S = 1.0


class OverloadDetector:
    """Judges the queue of one model by what arrivals find. On the event loop alone.

    A queue is only ever at its shortest just before an arrival, so nothing else needs to be
    observed. Times are in seconds on a clock that never goes back.
    """

    def __init__(self) -> None:
        self._overloaded = False
        self._began_at = 0.0
        self._done_at_begin = 0
        self._offered = 0
        self._windows = 0
        # When a call was last refused for want of room, or the overload was noticed.
        self._refused_at = -_CALM_S

    def arrive(self, now: float, *, is_long: bool, done: int) -> bool:
        """Take note of a call that comes, before it is let in or refused.

        Args:
            now: The time.
            is_long: Whether the queue that it finds is a long one.
            done: How many tokens have left the queue since the start, estimated as those that are
                let in and refused.

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
        """Take note that a call of so many tokens was let in."""
        self._offered += tokens

    def refuse(self, now: float, tokens: int) -> None:
        """Take note that there was no room for a call: there is an overload until it is calm."""
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
