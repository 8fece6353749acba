"""The results of texts, none of which fails only for now: such texts are sent again."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.status_errors import is_resumable

_FIRST_DELAY_S: Final = 0.2
_DELAY_S_MAX: Final = 10.0

Inputs = Iterator[tuple[int, str]]


def lasting_results(
    open_stream: Callable[[Inputs], AbstractContextManager[Any]],
    inputs: Inputs,
    *,
    accept: Callable[[StreamReady], None],
    patience_s: float,
) -> Iterator[StreamResult]:
    """Yield the result of each text, in the order in which they come.

    A server that is overloaded gets no further texts until those that it refused have a result.

    Args:
        open_stream: Opens a stream of results for texts.
        inputs: The number of each text, and the text.
        accept: Called with the terms of each stream before its results.
        patience_s: The longest time without a result other than refusals for now, in seconds.

    Raises:
        EmbedGrpcError: The call failed, or texts still failed for now after `patience_s`.
    """
    refused: Mapping[int, str] = {}
    refusals = 0  # rounds since the last result
    until = time.monotonic() + patience_s
    while True:
        turn = _Turn(refused, inputs)
        with open_stream(turn.inputs()) as stream:
            accept(stream.ready())
            for result in stream:
                if turn.was_refused(result):
                    continue
                yield result
                refusals = 0
                until = time.monotonic() + patience_s
        refused = turn.refused
        if turn.error is None:
            return
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise turn.error.with_traceback(None)
        delay_s = min(_FIRST_DELAY_S * 2**refusals, _DELAY_S_MAX)
        time.sleep(min(max(delay_s, turn.error.retry_delay_s or 0), left_s))
        refusals += 1


class _Turn:
    """The texts of one stream.

    Args:
        refused: Texts that were refused before; they are sent first.
        fresh: The texts to send after them.

    Attributes:
        refused: Texts that were refused for now.
        error: The last refusal.
    """

    def __init__(self, refused: Mapping[int, str], fresh: Inputs) -> None:
        self.refused: dict[int, str] = {}
        self.error: EmbedGrpcError | None = None
        self._first = refused
        self._fresh = fresh
        self._sent: dict[int, str] = {}

    def inputs(self) -> Inputs:
        """Yield the texts, until one is refused."""
        for number, text in self._first.items():
            self._sent[number] = text
            yield number, text
        while self.error is None:
            one = next(self._fresh, None)
            if one is None:
                return
            self._sent[one[0]] = one[1]
            yield one

    def was_refused(self, result: StreamResult) -> bool:
        """Note a result; return whether its text is to be sent again."""
        text = self._sent.pop(result.id)
        if result.error is None or not is_resumable(result.error, begun=True):
            return False
        self.refused[result.id] = text
        self.error = result.error
        return True
