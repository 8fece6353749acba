"""Tokenizes on threads of its own, many texts at a time.

Admission, which comes first, bounds the queue. Interactive texts go before bulk ones, and callers
of one class take turns. Large jobs are done in slices. A slice has texts of one class, and its
first half is for short jobs. So a short query waits for about one slice, unless many come at once.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tokenizing.jobs import SLICE_CHARACTERS, Piece, Tokenization
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints

_logger = logging.getLogger(__name__)

_Callers = OrderedDict[str, deque[Tokenization]]

# Bulk texts that wait get a slice after this many slices of interactive texts.
_INTERACTIVE_WEIGHT = 4


class _Turns:
    """Jobs of one class. The callers take turns, and so do the jobs of one caller."""

    def __init__(self) -> None:
        self._short: _Callers = OrderedDict()
        self._long: _Callers = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._short or self._long)

    def put(self, job: Tokenization) -> None:
        callers = self._short if job.is_short else self._long
        callers.setdefault(job.caller, deque()).append(job)

    def take(self, *, short_first: bool) -> Tokenization:
        order = (self._short, self._long) if short_first else (self._long, self._short)
        callers = order[0] or order[1]
        caller, jobs = next(iter(callers.items()))
        job = jobs.popleft()
        if jobs:
            callers.move_to_end(caller)
        else:
            del callers[caller]
        return job


class TextEncoder(Protocol):
    """Tokenizes texts. Thread-safe."""

    @property
    def cut_points(self) -> CutPoints | None:
        """Where a text can be cut without changing its tokens; None if unknown."""
        ...

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Return int64 [tokens, ...] for each text."""
        ...


class TokenizingThreads:
    """Threads that share one tokenizer.

    Args:
        tokenizer: Called from all threads.
        threads: Number of threads.
        name: Part of the threads' names.

    Attributes:
        after_slice: Called on a tokenizing thread, after the callbacks of the jobs of a slice. Must
            not raise.
    """

    def __init__(self, tokenizer: TextEncoder, *, threads: int, name: str) -> None:
        self.after_slice: Callable[[], None] = _nothing
        self._tokenizer = tokenizer
        self._waiting: dict[WorkClass, _Turns] = {work_class: _Turns() for work_class in WorkClass}
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
        """Queue a job. From any thread."""
        with self._changed:
            self._waiting[tokenization.work_class].put(tokenization)
            self._changed.notify()

    def close(self) -> None:
        """Stop the threads. Jobs that are still queued get no results."""
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
                turns = self._choose_class()
            self._tokenize(self._take(turns))
            self.after_slice()

    def _choose_class(self) -> _Turns:
        """Choose the class of the next slice, one that has jobs. With the lock held."""
        interactive, bulk = (self._waiting[work_class] for work_class in WorkClass)
        due = self._slices_since_bulk >= _INTERACTIVE_WEIGHT
        if bulk and (due or not interactive):
            self._slices_since_bulk = 0
            return bulk
        self._slices_since_bulk = self._slices_since_bulk + 1 if bulk else 0
        return interactive

    def _take(self, turns: _Turns) -> list[tuple[Tokenization, list[Piece]]]:
        """Take whole jobs up to a slice, or a slice of the first job.

        Texts are checked here without the lock, which the event loop also takes.
        """
        taken: list[tuple[Tokenization, list[Piece]]] = []
        room = SLICE_CHARACTERS
        while room > 0:
            with self._changed:
                if not turns:
                    break
                # Short jobs alone would keep long ones waiting for as long as they come.
                job = turns.take(short_first=room > SLICE_CHARACTERS // 2)
            if not job.wanted():
                continue
            try:
                pieces = job.take(room, self._tokenizer.cut_points)
            except EngineError as refusal:
                job.failed(refusal)
            except Exception as error:  # noqa: BLE001 - the thread must survive any input
                _fail(job, error)
            else:
                room -= sum(piece.cost for piece in pieces)
                taken.append((job, pieces))
        return taken

    def _tokenize(self, taken: list[tuple[Tokenization, list[Piece]]]) -> None:
        texts = [piece.text for _, pieces in taken for piece in pieces]
        try:
            ids = self._tokenizer.encode(texts) if texts else []
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            if len(taken) == 1:
                _fail(taken[0][0], error)
                return
            # Again one by one, so that no job fails because of another's text.
            for alone in taken:
                self._tokenize([alone])
            return
        position = 0
        for job, pieces in taken:
            job.add(pieces, ids[position : position + len(pieces)])
            position += len(pieces)
            if job.is_done:
                try:
                    job.done(job.results())
                except Exception as error:  # noqa: BLE001 - the thread must survive any input
                    _fail(job, error)
            else:
                # Behind the other jobs of its class, so that none waits for all of it.
                self.submit(job)


def _nothing() -> None:
    """Do nothing."""


def _fail(tokenization: Tokenization, error: BaseException) -> None:
    fault = EngineError.fault()
    _logger.error("fault while tokenizing", extra=fault.log_fields(error))
    tokenization.failed(fault)
