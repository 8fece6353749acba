"""Embed, called in every way that a client may think of; each answer is judged."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.endurance.asking import Asking
from tests.endurance.texts import Text
from tests.endurance.trial import WORK_CLASS_KEY, Outcome, Trial, metadata_for
from tests.server.failures import Failure, read_failure
from tests.server.service import Client

_TEXTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call may end before it is answered.

    Attributes:
        timeout_s: Its deadline; None for none.
        leave_after_s: When its client leaves; None for never.
        breaks_off: Whether its connection is about to be cut.
    """

    timeout_s: float | None = None
    leave_after_s: float | None = None
    breaks_off: bool = False


async def embed(trial: Trial, client: Client, choices: random.Random, ending: Ending) -> None:
    """Makes one call, and checks its outcome."""
    size = int(math.exp(choices.uniform(0, math.log(_TEXTS_MAX + 1))))
    call = _Call(
        trial,
        trial.source.take(size, choices),
        Asking.draw(choices),
        metadata_for(choices, usual="interactive", other="bulk"),
        ending,
    )
    await call.run(client)


class _Call:
    """One call."""

    def __init__(
        self,
        trial: Trial,
        texts: Sequence[Text],
        asking: Asking,
        metadata: Sequence[tuple[str, str]],
        ending: Ending,
    ) -> None:
        self._trial = trial
        self._texts = texts
        self._asking = asking
        self._metadata = metadata
        self._ending = ending
        self._digests = [text.digest for text in texts if text.digest]

    async def run(self, client: Client) -> None:
        """Make the call."""
        self._trial.sent += len(self._texts)
        self._trial.ledger.join(self._digests)
        runs = 0
        try:
            answer = await self._answer(client)
        finally:
            runs = self._trial.ledger.leave(self._digests)
        outcome = self._judge(answer, runs)
        self._trial.count(outcome, len(self._texts), unary=True)
        self._trial.calls[f"Embed {outcome}"] += 1
        left = outcome in (Outcome.CANCELLED, Outcome.EXPIRED, Outcome.GAVE_WAY)
        if left and not self._ending.breaks_off:
            await self._trial.make_heard(client, self._digests)

    async def _answer(self, client: Client) -> pb.EmbedResponse | Failure | None:
        """Return the response or the failure; None where the client left."""
        request = pb.EmbedRequest(
            texts=[text.text for text in self._texts], options=self._asking.options
        )
        call: Any = client.embedding.Embed(
            request, timeout=self._ending.timeout_s, metadata=self._metadata
        )
        leaving = None
        if self._ending.leave_after_s is not None:
            loop = asyncio.get_running_loop()
            leaving = loop.call_later(self._ending.leave_after_s, call.cancel)
        try:
            response: pb.EmbedResponse = await call
        except grpc.aio.AioRpcError as error:
            return read_failure(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            return None
        finally:
            if leaving:
                leaving.cancel()
        return response

    def _judge(self, answer: pb.EmbedResponse | Failure | None, runs: int) -> Outcome:
        if answer is None or (
            isinstance(answer, Failure)
            and answer.code is grpc.StatusCode.UNAVAILABLE
            and self._ending.breaks_off
        ):
            if answer is None and self._ending.leave_after_s is None:
                self._blame("was cancelled by nobody")
            return Outcome.CANCELLED
        return (
            self._judge_failure(answer, runs)
            if isinstance(answer, Failure)
            else self._judge_response(answer)
        )

    def _judge_response(self, response: pb.EmbedResponse) -> Outcome:
        if len(response.embeddings) != len(self._texts):
            self._blame(f"got {len(response.embeddings)} embeddings")
            return Outcome.ANSWERED
        for text, embedding in zip(self._texts, response.embeddings, strict=True):
            if problem := self._asking.problem_with(embedding, text):
                self._blame(problem)
        usage = (response.usage.input_tokens, response.usage.truncated_inputs)
        if usage != (sum(t.tokens for t in self._texts), sum(t.over_long for t in self._texts)):
            self._blame(f"is said to have cost {usage}")
        return Outcome.ANSWERED

    def _judge_failure(self, failure: Failure, runs: int) -> Outcome:
        match failure.code:
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                if failure.reason != "OVERLOADED" or failure.retry_delay_s is None:
                    self._blame(f"was refused without an answer to when: {failure}")
                if (WORK_CLASS_KEY, "bulk") in self._metadata:
                    self._blame("was refused although bulk work waits")
                gave_way = "gave way" in failure.details
                if runs and not gave_way:
                    self._blame(f"was refused, and {runs} of its texts were run")
                return Outcome.GAVE_WAY if gave_way else Outcome.REFUSED
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                if self._ending.timeout_s is None:
                    self._blame(f"has no deadline, and expired: {failure}")
                return Outcome.EXPIRED
        reasons = self._asking.reasons_for(self._texts)
        if failure.reason not in reasons:
            self._blame(f"may fail with {reasons or 'nothing'}, and failed with {failure}")
        self._check_fields(failure)
        if failure.reason not in ("EMPTY_INPUT", "INPUT_TOO_LONG"):
            return Outcome.FAILED
        if runs:
            self._blame(f"failed with {failure.reason}, and {runs} of its texts were run")
        return Outcome.BLANK if failure.reason == "EMPTY_INPUT" else Outcome.FAILED

    def _check_fields(self, failure: Failure) -> None:
        """Record an error that blames the wrong text."""
        for field, reason in zip(failure.fields, failure.field_reasons, strict=True):
            index = int(field.removeprefix("texts[").removesuffix("]"))
            if self._asking.reason_for(self._texts[index]) != reason:
                self._blame(f"{field} is blamed for {reason}, and innocent")

    def _blame(self, what: str) -> None:
        self._trial.findings.add(
            f"a call of {len(self._texts)} texts, {self._asking}, {self._ending},"
            f" {self._metadata}: {what}"
        )
