"""Streams one after the other until each row has a result: broken ones are followed by new ones.

A stream of the client would go on by itself, too. Here each call is a stream of its own: the run
checks the model of each, tells the user of each wait, and sends rows again that failed for now.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from embedgrpc.client.bulk.feed import Feed
from embedgrpc.client.errors import DeadlineExpiredError, EmbedGrpcError, UnauthenticatedError
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.status_errors import is_resumable
from embedgrpc.client.stream import EmbedStream

_FIRST_DELAY_S: Final = 0.1
_DELAY_S_MAX: Final = 10.0
_ROW_ATTEMPTS: Final = 4


class Delivery:
    """The results of all rows of a feed.

    Args:
        feed: The rows.
        open_stream: Opens a stream of results for inputs.
        accept: Called with the terms of each stream before its results.
        patience_s: The longest time without any result, in seconds.
        on_trouble: Told of each stream that broke, and of the wait before the next.
    """

    def __init__(
        self,
        feed: Feed,
        open_stream: Callable[[Iterator[Any]], EmbedStream],
        *,
        accept: Callable[[StreamReady], None],
        patience_s: float,
        on_trouble: Callable[[EmbedGrpcError, float], None],
    ) -> None:
        self._feed = feed
        self._open_stream = open_stream
        self._accept = accept
        self._patience_s = patience_s
        self._on_trouble = on_trouble
        self._last_result_at = time.monotonic()
        self._failures = 0  # since the last result
        self._attempts: dict[Any, int] = {}  # of rows that failed for now

    def greet(self) -> None:
        """Wait for the server, and accept its terms.

        Raises:
            EmbedGrpcError: The server refuses the stream, or did not answer for `patience_s`.
        """
        self._last_result_at = time.monotonic()
        while not self._was_accepted():
            pass

    def results(self) -> Iterator[StreamResult]:
        """Yield the result of each row, in the order in which they come.

        Raises:
            EmbedGrpcError: The server refuses the stream, or had no result for `patience_s`.
        """
        self._last_result_at = time.monotonic()
        while not self._feed.is_empty:
            was_ready = False
            try:
                with self._open_stream(self._feed.inputs()) as stream:
                    self._accept(stream.ready())
                    was_ready = True
                    yield from self._lasting(stream)
            except EmbedGrpcError as error:
                self._feed.check()
                self._wait(error, was_ready=was_ready)
            self._feed.check()

    def _was_accepted(self) -> bool:
        """Ask the server for its terms; return whether it answered."""
        try:
            with self._open_stream(iter(())) as stream:
                self._accept(stream.ready())
        except EmbedGrpcError as error:
            self._wait(error, was_ready=False)
            return False
        self._failures = 0
        return True

    def _lasting(self, stream: EmbedStream) -> Iterator[StreamResult]:
        """Yield the results of a stream; send rows again that failed only for now."""
        for result in stream:
            self._last_result_at = time.monotonic()
            self._failures = 0
            if result.error is not None and is_resumable(result.error, begun=True):
                attempts = self._attempts[result.id] = self._attempts.get(result.id, 1) + 1
                if attempts <= _ROW_ATTEMPTS:
                    self._feed.send_again(result.id)
                    continue
            self._attempts.pop(result.id, None)
            self._feed.answered(result.id)
            yield result

    def _wait(self, error: EmbedGrpcError, *, was_ready: bool) -> None:
        """Wait before the next stream; raise the error where another would not help."""
        # A stream that worked ends like this when its credentials expire: the next has new ones.
        expired = was_ready and isinstance(error, UnauthenticatedError) and not self._failures
        # A connection that was cut without a word: nothing comes any more.
        is_silent = isinstance(error, DeadlineExpiredError)
        left_s = self._last_result_at + self._patience_s - time.monotonic()
        if not (expired or is_silent or is_resumable(error, begun=True)) or left_s <= 0:
            raise error
        delay_s = min(_FIRST_DELAY_S * 2**self._failures, _DELAY_S_MAX)
        delay_s *= random.uniform(0.5, 1)  # noqa: S311 -- no secret: clients shall not come at once
        delay_s = min(max(delay_s, error.retry_delay_s or 0), left_s)
        self._failures += 1
        self._on_trouble(error, delay_s)
        time.sleep(delay_s)
