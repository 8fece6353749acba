"""A tokenizer and a backend with predictable results, and an engine made of them."""

import asyncio
import math
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from embedgrpc.backends.base import NO_CONTEXT, BackendError, PaddedBatch, RunContext
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.pipeline import Inputs, Pipeline, Prepare
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tokenizing.jobs import Tokenization, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work import Call, Job
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# Characters that make the backend fail: for their own row, or for the whole batch.
NAN, BROKEN = "!", "#"
OUTPUT, NEGATIVE = "answer", "negative"
WAIT_S = 60


def answer(text: str) -> list[float]:
    """Return the backend's result for a text: numbers that float32 holds exactly."""
    return [len(text), zlib.crc32(text.encode("utf-32-le")) & 0xFFFFFF]


def tokens_of(text: str) -> IntArray:
    """Return one token per character, int64 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)


def text_of(ids: IntArray) -> str:
    """Return the text that these tokens, int64 [tokens], were made of."""
    return ids.astype("<u4").tobytes().decode("utf-32-le")


def sequence_of(text: str) -> TokenSequence:
    """Return a tokenized text without special tokens."""
    return TokenSequence(tokens_of(text), None, len(text))


class CharacterTokenizer(Tokenizer):
    """Makes one token of each character, and records its inputs.

    Attributes:
        cut_points: Where texts may be cut, if anywhere.
        calls: The texts of each call.
        silent: Characters that make no tokens.
        poison: Texts that make it raise.
        fault: The exception it raises.
    """

    def __init__(self) -> None:
        self.cut_points: CutPoints | None = None
        self.silent = ""
        self.calls: list[list[str]] = []
        self.poison: set[str] = set()
        self.fault: type[BaseException] = ValueError
        self.gate = Gate()

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Tokenize texts, once the gate is open."""
        self.gate.enter()
        self.calls.append(list(texts))
        if self.poison & set(texts):
            raise self.fault(f"these cannot be taken: {texts}")
        kept = str.maketrans("", "", self.silent)
        return [tokens_of(text.translate(kept)) for text in texts]


class Gate:
    """Holds up threads, counts them, and lets them through one by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._waiting = 0
        self._passes = 0

    def enter(self) -> None:
        """Wait until the gate is open, or for a pass."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._open or self._passes, WAIT_S):
                raise TimeoutError("the gate was never opened")
            self._waiting -= 1
            self._passes -= not self._open
            self._changed.notify_all()

    def close(self) -> None:
        """Hold up the threads that come from now on."""
        with self._changed:
            self._open = False

    def wait_for(self, threads: int) -> None:
        """Block until this many threads wait at the gate at once."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting == threads, WAIT_S)

    def let_one_through(self) -> None:
        """Wait for a thread and let it pass."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting, WAIT_S)
            self._passes += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._passes, WAIT_S)

    def open(self) -> None:
        """Let all threads through."""
        with self._changed:
            self._open = True
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that ran: its shape and its texts."""

    shape: tuple[int, int]
    texts: tuple[str, ...]


class FakeBackend:
    """Answers each sequence with a function of its own tokens alone.

    Attributes:
        batches: The batches that ran, in the order in which they began.
        gave_way: The texts of those that were told to give way.
        gate: Holds up every run while it is closed.
        answers: Returns the row of a text; its length is the width.
    """

    def __init__(
        self, *, lanes: int = 1, answers: Callable[[str], Sequence[float]] = answer
    ) -> None:
        self.lanes = lanes
        self.lanes_compete = False
        self.can_give_way = False
        self.parallelism = lanes
        self.device = "cpu"
        self.batches: list[Batch] = []
        self.gave_way: set[str] = set()
        self.gate = Gate()
        self.answers = answers

    @property
    def texts(self) -> list[str]:
        """Every text that ran, once for each run."""
        return [text for batch in self.batches for text in batch.texts]

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Run a batch, once the gate is open."""
        texts = tuple(
            text_of(row[mask == 1])
            for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        )
        rows, columns = batch.input_ids.shape
        self.batches.append(Batch((rows, columns), texts))
        if context.gives_way:
            self.gave_way.update(texts)
        self.gate.enter()
        if any(BROKEN in text for text in texts):
            raise BackendError("the run failed")
        made = np.array([self.answers(text) for text in texts], np.float32)
        made[[NAN in text for text in texts], -1] = math.nan
        signs = {OUTPUT: 1, NEGATIVE: -1}
        return {output: made * np.float32(signs.get(output, 1)) for output in batch.outputs}

    def close(self) -> None:
        """Holds no resources."""


def build_all(results: list[TokenizeResult]) -> list[TokenSequence | EngineError]:
    """Return a sequence for each text, whatever its length."""
    return [
        one if isinstance(one, EngineError) else TokenSequence(one.ids, None, len(one.ids))
        for one in results
    ]


def unchecked(_: int, text: str) -> CheckedText:
    """Accept every text."""
    return CheckedText(text, cut=False)


def inputs_of(
    texts: Sequence[str],
    *,
    prepare: Prepare = build_all,
    output: str = OUTPUT,
    atomic: bool = True,
) -> Inputs:
    """Return the inputs of a job with one sequence per text."""
    return Inputs(
        texts=texts,
        check=unchecked,
        sequences=len(texts),
        prepare=prepare,
        outputs=(output,),
        size_bytes=sum(map(len, texts)),
        max_tokens=512,
        atomic=atomic,
    )


@dataclass
class RecordingSink:
    """Records the result of each index."""

    rows: dict[int, list[float]] = field(default_factory=dict)
    errors: dict[int, EngineError] = field(default_factory=dict)
    answers: int = 0
    expected: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Record the rows of the one output that was requested."""
        (numbers,) = rows.by_sequence.values()
        self.rows.update(zip(indices, numbers.tolist(), strict=True))
        self._count(len(indices))

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Record a failure."""
        self.errors.update(dict.fromkeys(indices, error))
        self._count(len(indices))

    def _count(self, answers: int) -> None:
        self.answers += answers
        if self.answers >= self.expected:
            self.done.set()


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of a running engine."""

    admission: Admission
    tokenizing: TokenizingThreads
    scheduler: Scheduler
    pipeline: Pipeline

    def job(self, texts: Sequence[str], call: Call, sink: RecordingSink) -> Job:
        """Return a job that is already tokenized."""
        reservation = self.admission.admit_always()
        job = Job(
            call=call, outputs=(OUTPUT,), sink=sink, inputs=len(texts), reservation=reservation
        )
        job.sequences = [sequence_of(text) for text in texts]
        sink.expected = len(texts)
        return job

    def wait_until_tokenized(self) -> None:
        """Block until everything submitted is in the scheduler's queue."""
        for work_class in reversed(WorkClass):
            last = threading.Event()
            self.tokenizing.submit(
                Tokenization(
                    texts=["last"],
                    check=unchecked,
                    work_class=work_class,
                    caller="",
                    atomic=True,
                    read_limit=None,
                    wanted=lambda: True,
                    done=lambda _, last=last: last.set(),  # type: ignore[misc]  # bound early
                    failed=lambda _: None,
                )
            )
            assert last.wait(WAIT_S)


@contextmanager
def running(
    backend: FakeBackend,
    *,
    tokenizer: Tokenizer | None = None,
    budget: BatchBudget | None = None,
    observers: Iterable[BatchObserver] = (),
    max_inputs: int = 1_000_000,
    max_queue_s: float = 3600,
    bulk_batch_s: float = 3600,
) -> Iterator[Engine]:
    """Run an engine on the caller's event loop."""
    tokenizer = tokenizer or CharacterTokenizer()
    budget = budget or BatchBudget(tokens=512, sequences=64, overhead_tokens=32)
    admission = Admission(
        max_inputs=max_inputs,
        max_tokens=1_000_000,
        batch_tokens=budget.tokens,
        max_queue_s=max_queue_s,
    )
    scheduler = Scheduler(
        model="fake",
        backend=backend,
        budget=budget,
        bulk_batch_s=bulk_batch_s,
        pad_token_id=0,
        pad_left=False,
        admission=admission,
        observers=observers,
        loop=asyncio.get_running_loop(),
    )
    tokenizing = TokenizingThreads(tokenizer, threads=1, name="fake")
    pipeline = Pipeline(admission=admission, tokenizing=tokenizing, scheduler=scheduler)
    try:
        yield Engine(admission, tokenizing, scheduler, pipeline)
    finally:
        if isinstance(tokenizer, CharacterTokenizer):
            tokenizer.gate.open()
        backend.gate.open()
        tokenizing.close()
        scheduler.close()


async def next_turn() -> None:
    """Let everything that is ready on the event loop run first."""
    turned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turned.set_result, None)
    await turned
