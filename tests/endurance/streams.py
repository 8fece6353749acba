"""StreamEmbed, by clients that read well, read slowly, run out of time, or leave half-way."""

import asyncio
import math
import random
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.endurance.asking import Asking
from tests.endurance.stream_results import StreamResults
from tests.endurance.trial import Outcome, Trial, metadata_for
from tests.server.failures import read_failure
from tests.server.service import Client

_TEXTS_MAX = 600
_PAUSE_SHARE = 0.3
_PAUSE_S_MAX = 0.1
# Long ids make long answers: a few fill the window of a connection that is narrow.
_LONG_ID = 256
# The exceptions of a write to a call that has ended.
_CALL_ENDED = (
    asyncio.CancelledError,
    asyncio.InvalidStateError,
    grpc.aio.AioRpcError,
    grpc.aio.InternalError,
)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a client treats its stream.

    Attributes:
        timeout_s: Its deadline; None for none.
        slow: Whether it stops reading, and writing, for a while now and then.
        leaves: Whether it leaves half-way.
        breaks_off: Whether its connection is about to be cut.
    """

    timeout_s: float | None = None
    slow: bool = False
    leaves: bool = False
    breaks_off: bool = False


async def embed_stream(
    trial: Trial, client: Client, choices: random.Random, manner: Manner
) -> None:
    """Runs one stream to its end, and checks every result."""
    await _Stream(trial, client, choices, manner).run()


class _Stream:
    """One stream."""

    def __init__(
        self, trial: Trial, client: Client, choices: random.Random, manner: Manner
    ) -> None:
        self._trial = trial
        self._client = client
        self._choices = choices
        self._manner = manner
        self._texts = int(math.exp(choices.uniform(0, math.log(_TEXTS_MAX + 1))))
        self._in_order = choices.random() < 0.5
        self._asking = Asking.draw(choices)
        self._results = StreamResults(
            trial,
            self._asking,
            in_order=self._in_order,
            has_deadline=manner.timeout_s is not None,
            id_length=_LONG_ID if manner.slow else 1,
        )
        self._leave_at = choices.randrange(self._texts) if manner.leaves else -1
        self._call: Any = client.embedding.StreamEmbed(
            timeout=manner.timeout_s,
            metadata=metadata_for(choices, usual="bulk", other="interactive"),
        )

    async def run(self) -> None:
        """Write and read until the stream ends."""
        writer: asyncio.Task[None] | None = None
        outcome = Outcome.CANCELLED
        try:
            ready = await self._open()
            writer = asyncio.create_task(self._write(ready))
            await self._read()
        except grpc.aio.AioRpcError as error:
            outcome = self._judge(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            self._blame("was cancelled by nobody")
        else:
            outcome = await self._end()
        finally:
            self._call.cancel()
            if writer:
                writer.cancel()
                (failure,) = await asyncio.gather(writer, return_exceptions=True)
                self._judge_writer(failure)
            left = self._results.leave(outcome)
        self._trial.calls[f"StreamEmbed {outcome}"] += 1
        if left and not self._manner.breaks_off:
            await self._trial.make_heard(self._client, left)

    async def _open(self) -> pb.StreamEmbedReady:
        order = pb.RESULT_ORDER_INPUT if self._in_order else pb.RESULT_ORDER_COMPLETION
        setup = pb.StreamEmbedSetup(options=self._asking.options, order=order)
        await self._call.write(pb.StreamEmbedRequest(setup=setup))
        message = await self._call.read()
        if message is grpc.aio.EOF or message.WhichOneof("step") != "ready":
            self._blame(f"begins with {message}")
        ready: pb.StreamEmbedReady = message.ready
        return ready

    async def _write(self, ready: pb.StreamEmbedReady) -> None:
        left = self._texts
        while left:
            size = min(self._choices.randint(1, ready.max_batch_inputs), left)
            left -= size
            texts = self._trial.source.take(size, self._choices)
            await self._call.write(self._results.send(texts, self._choices))
            await self._pause()
        await self._call.done_writing()

    async def _read(self) -> None:
        read = 0
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._results.take(message.results)
            read += len(message.results.results)
            if 0 <= self._leave_at <= read:
                return
            await self._pause()

    async def _pause(self) -> None:
        if self._manner.slow and self._choices.random() < _PAUSE_SHARE:
            await asyncio.sleep(self._choices.uniform(0, _PAUSE_S_MAX))

    async def _end(self) -> Outcome:
        """Check a stream that was read to its end, or until its client left."""
        if self._manner.leaves:
            return Outcome.CANCELLED
        code = await self._call.code()
        if code is not grpc.StatusCode.OK or self._results.missing:
            self._blame(f"ends with {code} and without {self._results.missing} answers")
        return Outcome.ANSWERED

    def _judge(self, error: grpc.aio.AioRpcError) -> Outcome:
        # grpc.aio raises this for a call that ends during a write.
        unknown = error.details() == "Internal error from Core"
        if self._manner.timeout_s is not None and (
            unknown or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        ):
            return Outcome.EXPIRED
        if self._manner.breaks_off and (unknown or error.code() is grpc.StatusCode.UNAVAILABLE):
            return Outcome.CANCELLED
        self._blame(f"fails with {read_failure(error)}")
        return Outcome.FAILED

    def _judge_writer(self, failure: BaseException | None) -> None:
        """Record why texts could not be sent, unless the stream had ended."""
        if failure is not None and not isinstance(failure, _CALL_ENDED):
            self._blame(f"cannot be written: {failure!r}")

    def _blame(self, what: str) -> None:
        self._trial.findings.add(
            f"a stream of {self._texts} texts, in order: {self._in_order}, {self._asking},"
            f" {self._manner}: {what}"
        )
