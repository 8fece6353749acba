"""The results that a stream owes its client, and their check."""

import random
from collections import deque
from collections.abc import Sequence
from itertools import count

from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.endurance.asking import Asking
from tests.endurance.texts import Text
from tests.endurance.trial import Outcome, Trial

_RECYCLED_SHARE = 0.5


class StreamResults:
    """The texts of one stream that are not answered yet.

    Args:
        trial: Is told what comes of them.
        asking: What was asked for.
        in_order: Whether answers come in the order of the texts.
        has_deadline: Whether a text may expire.
        id_length: How long ids are at least.
    """

    def __init__(
        self, trial: Trial, asking: Asking, *, in_order: bool, has_deadline: bool, id_length: int
    ) -> None:
        self._trial = trial
        self._asking = asking
        self._in_order = in_order
        self._has_deadline = has_deadline
        self._id_length = id_length
        self._texts: dict[str, Text] = {}
        self._order: deque[str] = deque()
        self._numbers = count()
        self._free: deque[str] = deque()

    @property
    def missing(self) -> int:
        """How many texts are not answered."""
        return len(self._texts)

    def send(self, texts: Sequence[Text], choices: random.Random) -> pb.StreamEmbedRequest:
        """Give texts their ids, and return their message.

        An id that was answered may be used again.
        """
        inputs = []
        for text in texts:
            recycled = self._free and choices.random() < _RECYCLED_SHARE
            identifier = self._free.popleft() if recycled else self._new_id()
            self._texts[identifier] = text
            if self._in_order:
                self._order.append(identifier)
            inputs.append(pb.StreamEmbedInput(id=identifier, text=text.text))
        self._trial.sent += len(texts)
        self._trial.ledger.join(text.digest for text in texts if text.digest)
        return pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs))

    def take(self, results: pb.StreamEmbedResults) -> None:
        """Check a message."""
        tokens = truncated = 0
        for result in results.results:
            self._take_one(result)
            tokens += result.embedding.token_count
            truncated += result.embedding.truncated
        usage = (results.usage.input_tokens, results.usage.truncated_inputs)
        if usage != (tokens, truncated):
            self._blame(f"a message cost {(tokens, truncated)}, and says {usage}")

    def leave(self, outcome: Outcome) -> list[bytes]:
        """Forget the unanswered texts; return their digests."""
        self._trial.count(outcome, len(self._texts))
        left = [text.digest for text in self._texts.values() if text.digest]
        self._texts.clear()
        self._trial.ledger.leave(left)
        return left

    def _take_one(self, result: pb.StreamEmbedResult) -> None:
        text = self._texts.pop(result.id, None)
        if text is None:
            self._blame(f"the id {result.id.lstrip('-')} was answered that waits for nothing")
            return
        self._free.append(result.id)
        if self._in_order and (first := self._order.popleft()) != result.id:
            self._blame(f"{first.lstrip('-')} is next, and {result.id.lstrip('-')} came")
        if text.digest:
            self._trial.ledger.leave([text.digest])
        if result.WhichOneof("outcome") == "embedding":
            if problem := self._asking.problem_with(result.embedding, text):
                self._blame(problem)
            self._trial.count(Outcome.ANSWERED, 1)
        else:
            self._take_error(result.error, text)

    def _take_error(self, error: common_pb2.ItemError, text: Text) -> None:
        reason = common_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        if reason == "DEADLINE_EXPIRED" and self._has_deadline:
            self._trial.count(Outcome.EXPIRED, 1)
            return
        if reason != (expected := self._asking.reason_for(text)):
            self._blame(f"a {text.kind.name} text may fail with {expected!r}; it did with {error}")
        blank = reason == "EMPTY_INPUT"
        self._trial.count(Outcome.BLANK if blank else Outcome.FAILED, 1)

    def _new_id(self) -> str:
        return f"{next(self._numbers)}".rjust(self._id_length, "-")

    def _blame(self, what: str) -> None:
        order = "input" if self._in_order else "completion"
        self._trial.findings.add(f"a stream in {order} order, {self._asking}: {what}")
