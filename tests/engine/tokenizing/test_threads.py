import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from embedgrpc.engine.errors import EmptyInputError, EngineError, Reason
from embedgrpc.engine.tokenizing.jobs import (
    Pairing,
    ReadLimit,
    Tokenization,
    Tokenized,
    TokenizeResult,
)
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import EVERYWHERE
from tests.engine.fakes import WAIT_S, CharacterTokenizer, text_of

SLICE = 4096
# What a text takes apart from its characters, in characters.
TEXT = 64


class PanicError(BaseException):
    """A panic of a Rust library, which is no Exception."""


@dataclass
class _Caller:
    """Submits texts, and records the results."""

    texts: list[str]
    work_class: WorkClass = WorkClass.INTERACTIVE
    name: str = ""
    atomic: bool = True
    read_limit: ReadLimit | None = None
    wanted: bool = True
    fault: type[Exception] | None = None
    size_bytes: int | None = None
    checked: list[int] = field(default_factory=list)
    results: list[TokenizeResult] = field(default_factory=list)
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
            read_limit=self.read_limit,
            size_bytes=self.size_bytes,
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

    def take(self, results: list[TokenizeResult]) -> None:
        if self.fault:
            raise self.fault("a fault")
        self.results = results
        self.ids = [one.ids for one in results if isinstance(one, Tokenized)]
        self.told.set()

    def fail(self, error: EngineError) -> None:
        self.errors.append(error)
        self.told.set()

    def read(self) -> list[str]:
        """Wait for the ids and return the texts they were made of."""
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
    """Keep the thread busy, so that everything that follows is queued."""
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


def test_bulk_waits_for_four_slices_and_no_longer(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Beside endless queries, every fifth slice begins with bulk texts."""
    hold(threads, tokenizer)
    queries = [_Caller([str(number) * (SLICE + 1)]) for number in range(9)]
    bulk = [_Caller([letter * (SLICE + 1)], WorkClass.BULK) for letter in "ab"]
    for caller in (*queries, *bulk):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (*queries, *bulk):
        assert caller.read() == caller.texts
    assert "".join(call[0][0] for call in tokenizer.calls[1:]) == "0123a4567b8"


def test_a_query_shares_no_slice_with_bulk_texts(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """It is done when its own text is; nor do slices of bulk texts beside none count for later."""
    hold(threads, tokenizer)
    bulk = [_Caller(["b" * (SLICE + 1)], WorkClass.BULK) for _ in range(9)]
    for caller in bulk:
        threads.submit(caller.tokenization())
    for _ in range(6):
        tokenizer.gate.let_one_through()
        tokenizer.gate.wait_for(1)
    query = _Caller(["query"])
    threads.submit(query.tokenization())
    tokenizer.gate.open()
    for caller in (*bulk, query):
        assert caller.read() == caller.texts
    assert tokenizer.calls.index(["query"]) == 7


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
    """Cancelled texts are not tokenized, nor is the rest of a large cancelled job."""
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
    """A text that the tokenizer cannot take fails its own caller; the log does not contain it."""
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
    """A caller that cannot take its ids gets an error, and the thread goes on."""
    hold(threads, tokenizer)
    bad, good = _Caller(["bad"], fault=RuntimeError), _Caller(["good"])
    for caller in (bad, good):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    assert good.read() == ["good"]
    assert bad.told.wait(WAIT_S)
    assert [error.reason for error in bad.errors] == [Reason.INTERNAL]


def test_several_threads_share_the_work() -> None:
    """As many jobs as there are threads are tokenized at once."""

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
    """After closing no thread is left, and later texts are not tokenized."""
    threads = TokenizingThreads(tokenizer, threads=2, name="ending")
    threads.close()
    late = _Caller(["late"])
    threads.submit(late.tokenization())
    assert not [one for one in threading.enumerate() if one.name.startswith("tokenize-ending")]
    assert not late.told.is_set()


def test_callers_take_turns(threads: TokenizingThreads, tokenizer: CharacterTokenizer) -> None:
    """A query waits for one slice of each other caller, however many jobs that caller has."""
    hold(threads, tokenizer)
    floods = [
        _Caller([letter * SLICE], name=name)
        for name, letters in (("anna", "abcde"), ("zoe", "vwxyz"))
        for letter in letters
    ]
    query = _Caller(["query"], name="other")
    for caller in (*floods, query):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (*floods, query):
        assert caller.read() == caller.texts
    order = "".join(text[0] for call in tokenizer.calls[1:] for text in call)
    assert order == "avqbwcxdyez"


def test_jobs_of_a_large_job_s_caller_take_turns_with_others(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """A job of many slices gives way to other callers after each."""
    hold(threads, tokenizer)
    large = _Caller([letter * SLICE for letter in "abcd"], name="anna")
    others = [_Caller([letter * SLICE], name=f"caller {letter}") for letter in "xy"]
    for caller in (large, *others):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (large, *others):
        assert caller.read() == caller.texts
    order = "".join(text[0] for call in tokenizer.calls[1:] for text in call)
    assert order == "axybcd"


def test_no_caller_is_kept_that_has_no_jobs(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Callers' names are forgotten with their last job."""
    callers = [_Caller(["text"], name=f"caller {number}") for number in range(100)]
    for caller in callers:
        threads.submit(caller.tokenization())
    for caller in callers:
        caller.read()
    assert not any(turns._short or turns._long for turns in threads._waiting.values())
    assert tokenizer.calls


def test_a_slice_has_few_texts_even_if_they_are_short(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Each text counts, not only its characters, because each takes some time."""
    caller = _Caller(["a"] * 1000)
    threads.submit(caller.tokenization())
    assert caller.read() == caller.texts
    assert max(len(call) for call in tokenizer.calls) <= SLICE // (TEXT + 1) + 1


def test_short_jobs_go_before_long_ones(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """A short job is in the next slice, however many callers with long ones came before."""
    hold(threads, tokenizer)
    long = [_Caller([letter * SLICE], name=letter, size_bytes=SLICE) for letter in "abcd"]
    short = _Caller(["s"], name="short", size_bytes=1)
    for caller in (*long, short):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (*long, short):
        assert caller.read() == caller.texts
    assert "".join(text[0] for call in tokenizer.calls[1:] for text in call) == "sabcd"


def test_short_jobs_leave_half_of_a_slice_to_long_ones(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Long jobs go on while more short ones come than a slice can hold."""
    hold(threads, tokenizer)
    short = [_Caller(["s"], name=f"caller {number}", size_bytes=1) for number in range(400)]
    long = _Caller(["long" * (SLICE // 8)], name="long", size_bytes=SLICE // 2)
    for caller in (*short, long):
        threads.submit(caller.tokenization())
    tokenizer.gate.open()
    for caller in (*short, long):
        assert caller.read() == caller.texts
    assert long.texts[0] in tokenizer.calls[1]


@pytest.mark.parametrize("from_end", [False, True])
def test_no_more_is_tokenized_than_is_read(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer, *, from_end: bool
) -> None:
    """A piece from the right end of a long text suffices if it exceeds the limit."""
    tokenizer.cut_points = EVERYWHERE
    text = "".join(chr(0x4E00 + number) for number in range(20_000))
    caller = _Caller([text], read_limit=ReadLimit(200, from_end=from_end))
    threads.submit(caller.tokenization())
    (kept,) = caller.read()
    assert 200 < len(kept) < 2000
    assert kept == (text[-len(kept) :] if from_end else text[: len(kept)])
    assert tokenizer.calls == [[kept]]


@pytest.mark.parametrize("from_end", [False, True])
def test_more_is_tokenized_until_it_is_enough(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer, *, from_end: bool
) -> None:
    """A text of few tokens is tokenized piece after piece, to its end if necessary."""
    tokenizer.cut_points = EVERYWHERE
    tokenizer.silent = "."
    dots = "." * 10_000
    text = f"abc{dots}d{dots}efg"
    callers = [
        _Caller([text], read_limit=ReadLimit(tokens, from_end=from_end)) for tokens in (3, 6, 7)
    ]
    for caller in callers:
        threads.submit(caller.tokenization())
    found = [caller.read()[0] for caller in callers]
    assert found[0] == ("defg" if from_end else "abcd")
    assert found[1] == found[2] == "abcdefg"


def test_pieces_of_many_texts_stay_apart(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Short texts and pieces of long ones come out in the order of the texts."""
    tokenizer.cut_points = EVERYWHERE
    tokenizer.silent = "."
    texts = ["short", "a" * 3000, "b" + "." * 50_000 + "c", "", "x" * 100_000, "end"]
    caller = _Caller(texts, read_limit=ReadLimit(100))
    threads.submit(caller.tokenization())
    found = caller.read()
    assert [text[:1] + text[-1:] for text in found] == ["st", "aa", "bc", "", "xx", "ed"]
    assert [len(text) > 100 for text in found] == [False, True, False, False, True, False]
    assert caller.checked == list(range(6))


@pytest.mark.parametrize("query", ["q" * 5, "q" * 40_000])
def test_documents_are_read_as_far_as_the_query_is_long(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer, query: str
) -> None:
    """The longer of query and document is cut, so both lengths must be known."""
    tokenizer.cut_points = EVERYWHERE
    documents = ["d" * 39_000, "e" * 40_001, "f" * 90_000, "g"]
    caller = _Caller([query, *documents], read_limit=ReadLimit(100, pairing=Pairing.WITH_FIRST))
    threads.submit(caller.tokenization())
    found = caller.read()
    assert found[0] == query
    for document, kept in zip(documents, found[1:], strict=True):
        assert document.startswith(kept)
        assert kept == document or len(kept) > max(100, len(query))
    assert len(found[3]) < len(documents[2])


def test_a_text_that_may_not_be_cut_is_tokenized_as_a_whole(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """Without a limit every token is counted, slice by slice."""
    tokenizer.cut_points = EVERYWHERE
    caller = _Caller(["a" * 5 * SLICE])
    threads.submit(caller.tokenization())
    assert caller.read() == caller.texts
    assert len(tokenizer.calls) == 5


def test_a_refused_text_ends_an_atomic_job(
    threads: TokenizingThreads, tokenizer: CharacterTokenizer
) -> None:
    """All that is wrong is reported, and nothing is tokenized where that cannot find more."""
    caller = _Caller(["good", "refused", "good", "refused too"], read_limit=ReadLimit(5))
    threads.submit(caller.tokenization())
    assert caller.told.wait(WAIT_S)
    (error,) = caller.errors
    assert error.message == "text 1"
    assert [other.message for other in error.others] == ["text 3"]
    assert caller.checked == [0, 1, 2, 3]
    assert tokenizer.calls == []


def test_a_response_names_a_bounded_number_of_texts(threads: TokenizingThreads) -> None:
    """A hundred texts are named, and the rest is not even checked."""
    caller = _Caller(["refused"] * 500, read_limit=ReadLimit(5))
    threads.submit(caller.tokenization())
    assert caller.told.wait(WAIT_S)
    assert len(caller.errors[0].others) == 99
    assert caller.checked == list(range(100))


def test_a_text_that_may_not_be_truncated_is_tokenized_beside_a_refused_one(
    threads: TokenizingThreads,
) -> None:
    """Whether it has too many tokens is known only then."""
    caller = _Caller(["refused", "good"])
    threads.submit(caller.tokenization())
    assert caller.read() == ["good"]
    assert isinstance(caller.results[0], EmptyInputError)


def test_a_refused_text_of_a_stream_fails_alone(threads: TokenizingThreads) -> None:
    """The other texts are tokenized; the error takes the bad one's place."""
    caller = _Caller(["refused", "good", "refused too"], atomic=False)
    threads.submit(caller.tokenization())
    assert caller.read() == ["good"]
    assert [isinstance(one, Tokenized) for one in caller.results] == [False, True, False]
    nothing_left = _Caller(["refused"], atomic=False)
    threads.submit(nothing_left.tokenization())
    assert nothing_left.read() == []


def test_texts_are_checked_without_holding_up_those_who_submit(
    threads: TokenizingThreads,
) -> None:
    """The event loop can submit while a thread checks megabytes."""
    checking, submitted = threading.Event(), threading.Event()

    class Slow(_Caller):
        def check(self, index: int, text: str) -> CheckedText:
            checking.set()
            assert submitted.wait(WAIT_S)
            return super().check(index, text)

    slow, other = Slow(["slow"]), _Caller(["other"])
    threads.submit(slow.tokenization())
    assert checking.wait(WAIT_S)
    threads.submit(other.tokenization())
    submitted.set()
    assert (slow.read(), other.read()) == (["slow"], ["other"])
