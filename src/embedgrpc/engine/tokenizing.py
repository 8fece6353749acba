"""Tokenizes on threads of its own, many texts at a time.

What waits is bounded by admission, which comes first. Interactive texts go before bulk ones,
and a large job is done in slices, so that a short query waits for one slice of it at most.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from embedgrpc.backends.base import IntArray
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizer import Tokenizer

_logger = logging.getLogger(__name__)

# About 10 ms of work for one core: the longest that an interactive text waits for a slice.
_SLICE_CHARACTERS = 32_768
# How many slices begin with interactive texts before bulk ones that wait come first.
_INTERACTIVE_WEIGHT = 4


class Tokenization:
    """Texts to tokenize, and whom to tell.

    Args:
        texts: What to tokenize, prompts in front.
        work_class: Interactive texts go first.
        wanted: Tells whether anybody still waits.
        done: Takes the token ids of each text, without special tokens. Called on the
            tokenizing thread.
        failed: Takes the error instead, when tokenizing or `done` raised. Called on the same
            thread.
    """

    __slots__ = ("done", "failed", "ids", "texts", "wanted", "work_class")

    def __init__(
        self,
        *,
        texts: Sequence[str],
        work_class: WorkClass,
        wanted: Callable[[], bool],
        done: Callable[[list[IntArray]], None],
        failed: Callable[[EngineError], None],
    ) -> None:
        self.texts = texts
        self.work_class = work_class
        self.wanted = wanted
        self.done = done
        self.failed = failed
        self.ids: list[IntArray] = []


class TokenizingThreads:
    """Threads that share one tokenizer.

    Args:
        tokenizer: Called from all threads.
        threads: How many.
        name: For the threads' names.
    """

    def __init__(self, tokenizer: Tokenizer, *, threads: int, name: str) -> None:
        self._tokenizer = tokenizer
        self._waiting: dict[WorkClass, deque[Tokenization]] = {
            work_class: deque() for work_class in WorkClass
        }
        self._changed = threading.Condition()
        self._closed = False
        self._slices_since_bulk = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"tokenize-{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tokenization: Tokenization) -> None:
        """Queues texts. From any thread."""
        with self._changed:
            self._waiting[tokenization.work_class].append(tokenization)
            self._changed.notify()

    def close(self) -> None:
        """Stops the threads. Whatever still waits is never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not any(self._waiting.values()):
                    self._changed.wait()
                if self._closed:
                    return
                taken = self._take()
            self._tokenize(taken)

    def _take(self) -> list[tuple[Tokenization, int]]:
        """Takes whole jobs up to a slice, or a slice of the first job.

        Returns:
            Jobs with the number of their texts to tokenize now.
        """
        taken: list[tuple[Tokenization, int]] = []
        room = _SLICE_CHARACTERS
        interactive, bulk = (self._waiting[work_class] for work_class in WorkClass)
        due = bool(bulk) and self._slices_since_bulk >= _INTERACTIVE_WEIGHT
        self._slices_since_bulk = 0 if due or not bulk else self._slices_since_bulk + 1
        for waiting in (bulk, interactive) if due else (interactive, bulk):
            while waiting and room > 0:
                first = waiting.popleft()
                if not first.wanted():
                    continue
                count = 0
                for text in first.texts[len(first.ids) :]:
                    if room <= 0:
                        break
                    room -= len(text)
                    count += 1
                taken.append((first, count))
        return taken

    def _tokenize(self, taken: list[tuple[Tokenization, int]]) -> None:
        texts = [
            text for one, count in taken for text in one.texts[len(one.ids) : len(one.ids) + count]
        ]
        try:
            ids = self._tokenizer.encode(texts)
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            if len(taken) == 1:
                _fail(taken[0][0], error)
                return
            # Once more one by one, so that none pays for another's text.
            for alone in taken:
                self._tokenize([alone])
            return
        position = 0
        for one, count in taken:
            one.ids.extend(ids[position : position + count])
            position += count
            if len(one.ids) == len(one.texts):
                try:
                    one.done(one.ids)
                except Exception as error:  # noqa: BLE001 - the thread must outlive any input
                    _fail(one, error)
            else:
                # Behind the others of its class, so that none waits for the whole of it.
                with self._changed:
                    self._waiting[one.work_class].append(one)
                    self._changed.notify()


def _fail(tokenization: Tokenization, error: BaseException) -> None:
    fault = EngineError.fault()
    _logger.error("fault while tokenizing", extra=fault.log_fields(error))
    tokenization.failed(fault)
