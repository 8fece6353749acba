from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.backends.triton.circuit import FAILURES_MAX, SILENT_CHECKS_MAX, Circuit

# Events of a circuit, each with the seconds before it.
EVENTS = st.lists(
    st.tuples(st.sampled_from(["succeed", "fail", "lose", "well", "ill", "gone"]), st.floats(0, 5)),
    max_size=60,
)


class Timed:
    """A circuit with a clock that the test sets."""

    def __init__(self, random: float = 0.5) -> None:
        self.now = 0.0
        self.circuit = Circuit(clock=lambda: self.now, random=lambda: random)

    def take(self, event: str) -> None:
        """Apply an event to the circuit."""
        match event:
            case "well":
                self.circuit.pass_check()
            case "ill" | "gone":
                self.circuit.fail_check(lost=event == "gone")
            case _:
                getattr(self.circuit, event)()


@given(EVENTS, st.floats(0, 1))
def test_it_opens_and_closes_for_known_reasons_only(
    events: list[tuple[str, float]], random: float
) -> None:
    """It opens when lost or after consecutive failures, and closes only after a passed check."""
    timed = Timed(random)
    failures = looks = 0
    closed = True
    for event, wait_s in events:
        timed.now += wait_s
        timed.take(event)
        if event == "well":
            failures = failures if closed else 0
            looks = 0
            closed = True
        elif event == "succeed":
            failures = looks = 0
        elif closed and event == "fail":
            failures += 1
            closed = failures < FAILURES_MAX
        elif closed and event == "ill":
            looks += 1
            closed = looks < SILENT_CHECKS_MAX
        elif event in ("lose", "gone"):
            closed = False
        assert timed.circuit.closed == closed


@given(EVENTS, st.floats(0, 1))
def test_the_next_check_is_soon(events: list[tuple[str, float]], random: float) -> None:
    """After any events, the next health check is at most two seconds away."""
    timed = Timed(random)
    for event, wait_s in events:
        timed.now += wait_s
        before = timed.circuit.closed
        timed.take(event)
        assert timed.circuit.due_at - timed.now <= 2 + 1e-9
        if event in ("lose", "gone") and before:
            assert 0.3 < timed.circuit.due_at - timed.now <= 0.5 + 1e-9


def test_checks_become_rarer_while_it_is_open() -> None:
    """The waits between checks of a lost endpoint grow from 0.5 s to 1 s."""
    timed = Timed(random=0)
    timed.circuit.lose()
    waits = []
    for _ in range(4):
        waits.append(timed.circuit.due_at - timed.now)
        timed.now = timed.circuit.due_at
        timed.circuit.fail_check(lost=True)
    assert waits == [0.5, 1.0, 1.0, 1.0]
    timed.circuit.pass_check()
    timed.circuit.lose()
    assert timed.circuit.due_at - timed.now == 0.5


def test_a_failure_makes_a_check_due() -> None:
    """A failed or late call makes a check due at once, except on an open circuit."""
    for take in (Circuit.fail, Circuit.doubt):
        timed = Timed()
        take(timed.circuit)
        assert timed.circuit.due_at == timed.now
        timed.circuit.lose()
        take(timed.circuit)
        assert timed.circuit.due_at > timed.now
