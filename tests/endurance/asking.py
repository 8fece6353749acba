"""How the texts of a call are to be embedded, and what must come of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.endurance.judging_backend import POOLED_FACTOR
from tests.endurance.texts import Kind, Text, vector_of
from tests.server.hash_backend import WIDTH

_DIMENSIONS = 8
_REASONS = {
    Kind.BROKEN: "BACKEND_FAILED",
    Kind.SPOILT: "NON_FINITE_OUTPUT",
    Kind.INFECTIOUS: "NON_FINITE_OUTPUT",
    Kind.FAULTY: "INTERNAL",
    Kind.BLANK: "EMPTY_INPUT",
}


@dataclass(frozen=True, slots=True)
class Asking:
    """The options of a call.

    Attributes:
        dimensions: How many numbers.
        normalize: Whether vectors get unit length.
        cut: Whether texts that are too long may be cut.
    """

    dimensions: int
    normalize: bool
    cut: bool

    @classmethod
    def draw(cls, choices: random.Random) -> "Asking":
        """Draw options; most draws are equal."""
        return cls(
            dimensions=_DIMENSIONS if choices.random() < 0.1 else WIDTH,
            normalize=choices.random() > 0.1,
            cut=choices.random() > 0.05,
        )

    @property
    def options(self) -> pb.EmbedOptions:
        """The same as a message."""
        return pb.EmbedOptions(
            dimensions=self.dimensions,
            normalize=self.normalize,
            truncation=common_pb2.TRUNCATION_END if self.cut else common_pb2.TRUNCATION_NONE,
        )

    def reason_for(self, text: Text) -> str:
        """Return why a text must fail; empty where it must succeed."""
        if text.over_long and not self.cut:
            return "INPUT_TOO_LONG"
        return _REASONS.get(text.kind, "")

    def reasons_for(self, texts: Sequence[Text]) -> set[str]:
        """Return why a call may fail; empty where it must succeed."""
        reasons = [reason for text in texts if (reason := self.reason_for(text))]
        # Whether a text is blank, or too long, is looked at before any is run; the first counts.
        for reason in reasons:
            if reason in {"EMPTY_INPUT", "INPUT_TOO_LONG"}:
                return {reason}
        return set(reasons)

    def vector_for(self, text: Text) -> FloatArray:
        """The numbers that a text must get, float32 [dimensions]."""
        vector = vector_of(text.digest)
        if not self.normalize:
            vector = vector * POOLED_FACTOR
        vector = vector[: self.dimensions]
        # The model's own vectors of full length are sent as they are.
        if self.normalize and self.dimensions < WIDTH:
            vector = vector / np.linalg.norm(vector)
        return vector.astype(np.float32)

    def problem_with(self, embedding: pb.Embedding, text: Text) -> str:
        """Compare an embedding with the expected one; return the difference, or nothing."""
        if reason := self.reason_for(text):
            return f"a text was answered that must fail with {reason}"
        numbers = np.array(embedding.dense.values, np.float32)
        expected = self.vector_for(text)
        if numbers.shape != expected.shape or not np.allclose(numbers, expected, rtol=1e-6, atol=0):
            return f"a text of {text.tokens} tokens got an answer that is not its own"
        if (embedding.token_count, embedding.truncated) != (text.tokens, text.over_long):
            return (
                f"a text of {text.tokens} tokens, cut: {text.over_long}, is said to have"
                f" {embedding.token_count}, cut: {embedding.truncated}"
            )
        return ""
