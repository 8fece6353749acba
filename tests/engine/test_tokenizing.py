import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from embedgrpc.backends.base import IntArray
from embedgrpc.engine.errors import EmptyInputError, EngineError, Reason
from embedgrpc.engine.texts import CheckedText
from embedgrpc.engine.tokenizing import (
    Outcome,
    Reading,
    Tokenization,
    Tokenized,
    TokenizingThreads,
)
from embedgrpc.engine.work_class import WorkClass
from tests.engine.fakes import WAIT_S, CharacterTokenizer, text_of

SLICE = 32_768


class PanicError(BaseException):
    """What a library in Rust raises where it gave up: no Exception."""


@dataclass
class _Caller:
    """Submits texts, and takes what becomes of them."""

    texts: list[str]
    work_class: WorkClass = WorkClass.INTERACTIVE
    name: str = ""
    atomic: bool = True
    reading: Reading | None = None
    wanted: bool = True
    fault: type[Exception] | None = None
    checked: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ids: list[IntArray] = field(default_factory=list)
    errors: list[EngineError] = field(default_factory=list)
    told: threading.Event = field(default_factory=threading.Event)

    def tokenization(self) -> Tokenization:
        return Tokenization(
            texts=self.texts,
            check=self.check,
            work_class=self.work_class,
            caller=self.name,
            atomic=self.atomic,
            reading=self.reading,
            wanted=lambda: self.wanted,
            done=self.take,
            failed=self.fail,
        )

    def check(self, index: int, text: str) -> CheckedText:
        assert self.texts[index] == text
        self.checked.append(index)
        if text.startswith("refused"):
            raise EmptyInputError(f"text {index}")
        return CheckedText(text, cut=False)

    def take(self, outcomes: list[Outcome]) -> None:
        if self.fault:
            raise self.fault("a fault of ours")
        self.outcomes = outcomes
        self.ids = [one.ids for one in outcomes if isinstance(one, Tokenized)]
        self.told.set()

    def fail(self, error: EngineError) -> None:
        self.errors.append(error)
        self.told.set()

    def read(self) -> list[str]:
        """Waits for the ids and returns the texts that they were made of."""
        assert self.told.wait(WAIT_S)
        assert not self.errors
        return [text_of(ids) for ids in self.ids]


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    """A tokenizer whose gate is open."""
    return CharacterTokenizer()


@pytest.fixture
def threads(tokenizer: CharacterTokenizer) -> Iterator[TokenizingThreads]:
    """One thread."""
    made = TokenizingThreads(tokenizer, threads=1, name="test")
    yield made
    tokenizer.gate.open()
    made.close()


def hold(threads: TokenizingThreads, tokenizer: CharacterTokenizer) -> _Caller:
    """Keeps the thread busy, so that all that comes next waits."""
    tokenizer.gate.close()
    first = _Caller(["first"])
    threads.submit(first.tokenization())
    tokenizer.gate.wait_for(1)
    return first


def test_ids_are_in_order(threads: TokenizingThreads) -> None:
    """A caller gets the ids of its own texts in their order."""
    caller = _Caller([f"text {number}" for number in range(100)])
    threads.submit(caller.tokenization())
    assert caller.read() == caller.texts


def test_interactive_goes_before_bulk(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """A query that came after a pile of bulk texts is tokenized before them."""
    first = hold(threads, tokenizer)
    bulk = [_Caller([letter * (SLICE + 1)], WorkClass.BULK) for letter in "abc"]
    query = _Caller(["query"])
    for caller in (*bulk, query):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (first, query, *bulk):
        assert caller.read() == caller.texts
    order = [text[:5] for call in tokenizer.calls for text in call]
    assert order == ["first", "query", "aaaaa", "bbbbb", "ccccc"]


def test_small_jobs_share_a_call(threads: TokenizingThreads, tokenizer: CharacterTokenizer) -> None:
    """Texts of many callers are tokenized in one call."""
    hold(threads, tokenizer)
    callers = [_Caller([f"query {number}"]) for number in range(50)]
    for caller in callers:
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    assert [caller.read() for caller in callers] == [caller.texts for caller in callers]
    assert len(tokenizer.calls) == 2


@pytest.mark.parametrize("work_class", WorkClass)
def test_large_jobs_are_sliced(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer, work_class: WorkClass
) -> None:
    """Large jobs of one class take turns, and a short one waits for one slice of each."""
    hold(threads, tokenizer)
    large = [
        _Caller([letter * (SLICE // 2) for letter in letters], work_class)
        for letters in ("abcdef", "uvwxyz")
    ]
    short = _Caller(["short"], work_class)
    for caller in (*large, short):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (*large, short):
        assert caller.read() == caller.texts
    assert all(sum(map(len, call)) < SLICE + SLICE // 2 for call in tokenizer.calls)
    order = "".join(text[0] for call in tokenizer.calls[1:] for text in call)
    assert order == "abuvscdwxefyz"


def test_cancelled_jobs_are_dropped(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Texts that nobody waits for any more are not tokenized, nor is the rest of a large job."""
    hold(threads, tokenizer)
    cancelled = _Caller(["cancelled"])
    large = _Caller(["a" * SLICE, "never"], WorkClass.BULK)
    threads.submit(large.tokenization())
    tokenizer.gate.let_one_through()
    tokenizer.gate.wait_for(1)
    large.wanted = cancelled.wanted = False
    last = _Caller(["last"], WorkClass.BULK)
    for caller in (cancelled, last):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    assert last.read() == ["last"]
    assert [text[:5] for call in tokenizer.calls for text in call] == ["first", "aaaaa", "last"]
    assert not cancelled.told.is_set()
    assert not large.told.is_set()


@pytest.mark.parametrize("fault", [ValueError, PanicError])
def test_failure_reaches_only_its_job(
    threads: TokenizingThreads,
    tokenizer: CharacterTokenizer,
    caplog: pytest.LogCaptureFixture,
    fault: type[BaseException],
) -> None:
    """A text that the tokenizer cannot take fails its own caller; the log does not tell it."""
    tokenizer.fault = fault
    tokenizer.poison = {"secret"}
    hold(threads, tokenizer)
    good = [_Caller(["one", "two"]), _Caller(["three"], WorkClass.BULK)]
    bad = _Caller(["fine", "secret"])
    for caller in (good[0], bad, good[1]):
        threads.submit(caller.tokenization())
    with caplog.at_level(logging.ERROR):
        tokenizer.gate.open()
        assert [caller.read() for caller in good] == [caller.texts for caller in good]
        assert bad.told.wait(WAIT_S)
    (error,) = bad.errors
    assert error.reason is Reason.INTERNAL
    (record,) = caplog.records
    assert record.__dict__["incident"] == error.metadata["incident"]
    assert record.__dict__["error"] == fault.__name__
    assert "secret" not in str(record.__dict__)
    after = _Caller(["after"])
    threads.submit(after.tokenization())
    assert after.read() == ["after"]


def test_fault_of_a_caller_reaches_only_it(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """A caller that cannot take its ids is told so, and the thread goes on."""
    hold(threads, tokenizer)
    bad, good = _Caller(["bad"], fault=RuntimeError), _Caller(["good"])
    for caller in (bad, good):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    assert good.read() == ["good"]
    assert bad.told.wait(WAIT_S)
    assert [error.reason for error in bad.errors] == [Reason.INTERNAL]


def test_several_threads_share_the_work() -> None:
    """As many jobs as there are threads are tokenized at the same time."""

    class Meeting(CharacterTokenizer):
        together = threading.Barrier(3)

        def encode(self, texts: object) -> list[IntArray]:
            self.together.wait(WAIT_S)
            return super().encode(list(texts))  # type: ignore[call-overload]  # a sequence

    threads = TokenizingThreads(Meeting(), threads=3, name="test")
    callers = [_Caller([letter * SLICE]) for letter in "abc"]
    for caller in callers:
        threads.submit(caller.tokenization())
    assert [caller.read() for caller in callers] == [caller.texts for caller in callers]
    threads.close()


def test_every_text_once_with_several_threads(tokenizer: CharacterTokenizer) -> None:
    """Jobs of every size come out whole, however many threads slice them."""
    threads = TokenizingThreads(tokenizer, threads=4, name="test")
    callers = [
        _Caller(
            [f"{number} {index} " + "x" * (number * 97 % 9000) for index in range(number % 17 + 1)],
            WorkClass(number % 2),
        )
        for number in range(200)
    ]
    for caller in callers:
        threads.submit(caller.tokenization())
    for caller in callers:
        assert caller.read() == caller.texts
    threads.close()
    encoded = sorted(text for call in tokenizer.calls for text in call)
    assert encoded == sorted(text for caller in callers for text in caller.texts)


def test_close_ends_the_threads(tokenizer: CharacterTokenizer) -> None:
    """After closing no thread is left, and what came too late is not tokenized."""
    threads = TokenizingThreads(tokenizer, threads=2, name="ending")
    threads.close()
    late = _Caller(["late"])
    threads.submit(late.tokenization())
    assert not [one for one in threading.enumerate() if one.name.startswith("tokenize-ending")]
    assert not late.told.is_set()
