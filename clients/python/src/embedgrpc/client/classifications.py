"""The results of Classify and StreamClassify: labels with their scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedgrpc.client.errors import BadResponseError, EmbedGrpcError
from embedgrpc.client.server_description import Limits, decode_limits, require_room
from embedgrpc.client.status_errors import error_of_item
from embedgrpc.v1 import classify_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its score.

    Attributes:
        label: The label.
        score: The score.
        index: The position of the label in `Model.labels`.
    """

    label: str
    score: float
    index: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one input with their scores, or its error.

    Attributes:
        labels: The labels, in the order that was asked for; empty after an error.
        token_count: The tokens of the input.
        truncated: Whether it was cut to fit.
        error: The reason why there are no labels, for you to raise; None if there are.
    """

    labels: Sequence[LabelScore] = ()
    token_count: int = 0
    truncated: bool = False
    error: EmbedGrpcError | None = None

    @property
    def best(self) -> LabelScore:
        """The label with the highest score.

        Raises:
            EmbedGrpcError: The input failed.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)
        return max(self.labels, key=lambda one: one.score)


@dataclass(frozen=True, slots=True)
class Classifications:
    """The classifications of a batch of inputs, in their order: a sequence of `Classification`.

    Attributes:
        results: One for each input.
        model: The id of the model that ran.
        revision: Its revision.
        fingerprint: The id of the source of the scores. Never compare scores of different ones.
        input_tokens: The tokens of the whole call.
    """

    results: Sequence[Classification]
    model: str
    revision: str
    fingerprint: str
    input_tokens: int

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Classification]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Classification:
        return self.results[index]


@dataclass(frozen=True, slots=True)
class ClassifyStreamReady:
    """The model and the limits of a stream of classifications.

    Attributes:
        model: The id of the model that runs.
        revision: Its revision.
        fingerprint: The id of the source of the scores. Never compare scores of different ones.
        max_in_flight_inputs: The limit of inputs that have no result yet.
        max_batch_inputs: The limit of inputs in one message.
        limits: The limits of the server.
    """

    model: str
    revision: str
    fingerprint: str
    max_in_flight_inputs: int
    max_batch_inputs: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The classification of one input of a stream, or its error.

    Attributes:
        id: The id that the caller gave, or the position of the input as a decimal str.
        classification: The labels with their scores; None after an error.
        error: The reason why there are no labels, for you to raise; None if there are.
    """

    id: Any
    classification: Classification | None = None
    error: EmbedGrpcError | None = None


def decode_classifications(
    response: pb.ClassifyResponse, sent: Sequence[int], unsent: Mapping[int, EmbedGrpcError]
) -> Classifications:
    """Decode the response of Classify.

    Args:
        response: The response.
        sent: The positions of the inputs that were sent.
        unsent: The errors of the others, by position.

    Raises:
        BadResponseError: The number of classifications is not that of the inputs sent.
    """
    found = len(response.classifications)
    if found != len(sent):
        raise BadResponseError(f"{found} classifications came back for {len(sent)} inputs")
    results = {index: Classification(error=error) for index, error in unsent.items()}
    for index, message in zip(sent, response.classifications, strict=True):
        results[index] = _decode(message)
    return Classifications(
        results=tuple(results[index] for index in sorted(results)),
        model=response.model,
        revision=response.revision,
        fingerprint=response.fingerprint,
        input_tokens=response.usage.input_tokens,
    )


def decode_classify_ready(message: pb.StreamClassifyReady) -> ClassifyStreamReady:
    """Decode the first response of a stream of classifications.

    Raises:
        BadResponseError: The limits of the stream allow no input at all.
    """
    require_room(message.max_in_flight_inputs, message.max_batch_inputs)
    return ClassifyStreamReady(
        model=message.model,
        revision=message.revision,
        fingerprint=message.fingerprint,
        max_in_flight_inputs=message.max_in_flight_inputs,
        max_batch_inputs=message.max_batch_inputs,
        limits=decode_limits(message.limits),
    )


def decode_classify_result(message: pb.StreamClassifyResult, caller_id: Any) -> ClassifyResult:
    """Decode one result of a stream.

    Args:
        message: The result.
        caller_id: The id that the caller gave the input.

    Raises:
        BadResponseError: It has neither classification nor error.
    """
    if message.HasField("error"):
        return ClassifyResult(caller_id, error=error_of_item(message.error))
    if not message.HasField("classification"):
        raise BadResponseError("a result of the stream has neither classification nor error")
    return ClassifyResult(caller_id, _decode(message.classification))


def _decode(message: pb.Classification) -> Classification:
    if message.HasField("error"):
        return Classification(error=error_of_item(message.error))
    return Classification(
        labels=tuple(LabelScore(one.label, one.score, one.index) for one in message.labels),
        token_count=message.token_count,
        truncated=message.truncated,
    )
