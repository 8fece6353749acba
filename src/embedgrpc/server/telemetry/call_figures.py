"""Counts the calls of all doors when they end, from what is recorded of each.

What can happen is known, so every series is there at zero from the start, and a client cannot make
new ones: methods are those that are served, models those that are configured, and the name of a
caller does not appear.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from embedgrpc.engine.errors import Reason
from embedgrpc.server.caller import Proof, Service
from embedgrpc.server.loading.catalog import Catalog, LoadedModel
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.histogram import SECONDS, Histogram
from embedgrpc.server.telemetry.metrics import Reading

# What can go wrong before the model of a call is known, and after that.
_BEFORE_MODEL: Final = (
    Reason.INVALID_REQUEST,
    Reason.MODEL_NOT_FOUND,
    Reason.OVERLOADED,
    Reason.RATE_LIMITED,
    Reason.DEADLINE_EXPIRED,
    Reason.SHUTTING_DOWN,
    Reason.INTERNAL,
)
_WITH_MODEL: Final = (
    Reason.INVALID_REQUEST,
    Reason.INPUT_TOO_LONG,
    Reason.EMPTY_INPUT,
    # KServe's clients name a version as well.
    Reason.MODEL_NOT_FOUND,
    Reason.UNSUPPORTED,
    Reason.OVERLOADED,
    Reason.RATE_LIMITED,
    Reason.DEADLINE_EXPIRED,
    Reason.BACKEND_UNAVAILABLE,
    Reason.BACKEND_FAILED,
    Reason.NON_FINITE_OUTPUT,
    Reason.SHUTTING_DOWN,
    Reason.INTERNAL,
)
# What happens to calls for models that cannot do what they ask for, or are not loaded.
_WITH_OTHER_MODEL: Final = (Reason.INVALID_REQUEST, Reason.BACKEND_UNAVAILABLE)
_SUCCESSES: Final = frozenset({"OK", "200", "204"})
# The calls that the server turned away, and why; a label says more than its reason.
REFUSALS: Final[Mapping[Reason, Sequence[str]]] = {
    Reason.OVERLOADED: (
        "",
        "QUEUE_FULL",
        "STANDING_QUEUE",
        "DEADLINE_UNREACHABLE",
        "NO_ROOM_TO_RECEIVE",
        "NO_ROOM_FOR_ANSWER",
        "TOO_MANY_CALLS",
        "MESSAGE_TOO_SLOW",
        "STREAM_GAVE_WAY",
    ),
    Reason.RATE_LIMITED: ("REQUESTS_PER_SECOND", "TOKENS_PER_MINUTE", "CONCURRENT_CALLS"),
    Reason.UNAUTHENTICATED: ("NO_CREDENTIALS", "INVALID_CREDENTIALS", "EXPIRED_CREDENTIALS"),
    Reason.PERMISSION_DENIED: ("SERVICE_DENIED", "MODEL_DENIED", "SCOPE_MISSING"),
    Reason.BACKEND_UNAVAILABLE: ("",),
    Reason.SHUTTING_DOWN: ("STOPPING", "MAX_AGE"),
}
_REFUSING: Final = frozenset(one.value for one in REFUSALS)


@dataclass(frozen=True, slots=True)
class CallMethod:
    """A method, or a route, that is served.

    Attributes:
        door: Its protocol.
        name: As records have it.
        service: What it does; None where that depends on the model.
        names_model: Whether its calls may be for one model.
        lists_models: Whether they may be for none.
        success: The status of success.
        left: The statuses of calls that the client, or its deadline, ended.
        statuses: The status of each reason.
        wrong_task: That of a call for a model which cannot do this.
    """

    door: str
    name: str
    service: Service | None
    names_model: bool
    lists_models: bool
    success: str
    left: Sequence[str]
    statuses: Mapping[Reason, str]
    wrong_task: str


class _Key(NamedTuple):
    """The labels of a counter of calls."""

    door: str
    method: str
    model: str
    caller_class: str
    status: str
    reason: str


class CallFigures:
    """Counts calls; on the event loop.

    Args:
        methods: Those that are served.
        catalog: The models.
        proofs: How callers prove who they are.
        has_authentication: Whether calls need credentials.
    """

    def __init__(
        self,
        methods: Iterable[CallMethod],
        catalog: Catalog,
        *,
        proofs: Sequence[Proof],
        has_authentication: bool,
    ) -> None:
        self._methods = tuple(methods)
        self._catalog = catalog
        self._proofs = proofs
        self._has_authentication = has_authentication
        self._counts: Counter[_Key] = Counter()
        self._durations: dict[tuple[str, str, str], Histogram] = {}
        self._inputs: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._refusals: Counter[tuple[str, str]] = Counter(
            {(reason.value, label): 0 for reason, some in REFUSALS.items() for label in some}
        )
        # The series that are there without a call, and the models that they are of.
        self._known: tuple[object, tuple[_Key, ...]] = (None, ())

    def add(self, record: CallRecord, proof: Proof) -> None:
        """Count a call that has ended; those that only ask for the server's health do not count."""
        if record.is_probe:
            return
        model = record.models[0].id if record.models else ""
        door, method = record.door, record.method
        self._counts[_Key(door, method, model, proof, record.status, record.reason)] += 1
        if record.reason:
            if record.reason in _REFUSING:
                self._refusals[record.reason, record.label] += 1
        elif record.succeeded:
            self._duration(door, method, model).add(record.total_s, record.span)
        if record.inputs:
            self._inputs[door, model] += record.inputs
        if record.tokens:
            self._tokens[door, model] += record.tokens

    def _duration(self, door: str, method: str, model: str) -> Histogram:
        place = (door, method, model)
        found = self._durations.get(place)
        if found is None:
            found = self._durations[place] = Histogram(SECONDS)
        return found

    def read(self) -> Iterator[Reading]:
        """Return the metrics. From any thread."""
        known = self._find_known()
        counts = self._counts.copy()
        for key in dict.fromkeys((*known, *counts)):
            attributes = key._asdict()
            attributes["method"] = key.method.lstrip("/")
            attributes["caller_class"] = str(key.caller_class)
            yield Reading("embedgrpc.calls", counts[key], attributes)
        durations = self._durations.copy()
        nothing = Histogram(SECONDS)
        succeeding = (key[:3] for key in known if key.status in _SUCCESSES)
        for place in dict.fromkeys((*succeeding, *durations)):
            door, method, model = place
            attributes = {"door": door, "method": method.lstrip("/"), "model": model}
            histogram = durations.get(place, nothing)
            yield Reading.of("embedgrpc.call.duration", histogram, attributes)
        yield from self._read_work()
        for (reason, label), count in self._refusals.copy().items():
            yield Reading("embedgrpc.refusals", count, {"reason": reason, "label": label})

    def _read_work(self) -> Iterator[Reading]:
        doors = dict.fromkeys(one.door for one in self._methods if one.names_model)
        places = [(door, model.id) for door in doors for model in self._catalog]
        for name, counter in (
            ("embedgrpc.call.inputs", self._inputs.copy()),
            ("embedgrpc.call.tokens", self._tokens.copy()),
        ):
            for door, model in dict.fromkeys((*places, *counter)):
                yield Reading(name, counter[door, model], {"door": door, "model": model})

    def _find_known(self) -> tuple[_Key, ...]:
        """Return the series that are there without a call; made anew when models have changed."""
        models = tuple((one.id, one.loaded) for one in self._catalog)
        if self._known[0] != models:
            keys = (key for method in self._methods for key in self._keys_of(method, models))
            self._known = (models, tuple(dict.fromkeys(keys)))
        return self._known[1]

    def _keys_of(
        self, method: CallMethod, models: Iterable[tuple[str, LoadedModel | None]]
    ) -> Iterator[_Key]:
        if self._has_authentication:
            refused = (method.statuses[Reason.UNAUTHENTICATED], Reason.UNAUTHENTICATED.value)
            yield _Key(method.door, method.name, "", Proof.ANONYMOUS, *refused)
        denied = (Reason.PERMISSION_DENIED,) if self._has_authentication else ()
        for proof in self._proofs:
            # What is for no model may still depend on some.
            more = _WITH_MODEL if method.lists_models else ()
            ends = _ends(method, (*_BEFORE_MODEL, *more, *denied), succeeds=method.lists_models)
            for end in ends:
                yield _Key(method.door, method.name, "", proof, *end)
            if not method.names_model:
                continue
            runs = _ends(method, (*_WITH_MODEL, *denied), succeeds=True)
            fails = [(method.statuses[reason], reason.value) for reason in _WITH_OTHER_MODEL]
            fails.append((method.wrong_task, Reason.UNSUPPORTED.value))
            for model, loaded in models:
                can = loaded is not None and _can(loaded, method.service)
                for end in runs if can else fails:
                    yield _Key(method.door, method.name, model, proof, *end)


def _ends(
    method: CallMethod, reasons: Iterable[Reason], *, succeeds: bool
) -> Sequence[tuple[str, str]]:
    """Return how calls can end: status and reason."""
    ends = [(method.statuses[reason], reason.value) for reason in reasons]
    successes = [method.success] if succeeds else []
    return [*((status, "") for status in (*successes, *method.left)), *ends]


def _can(loaded: LoadedModel, service: Service | None) -> bool:
    match service:
        case Service.EMBED:
            return loaded.embedder is not None
        case Service.RERANK:
            return loaded.reranker is not None
        case Service.CLASSIFY:
            return loaded.classifier is not None
        case Service.TOKENIZE:
            return loaded.has_tokenizer
    return True
