"""Runs batches on one or several Triton servers with the same model."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from embedgrpc.backends.base import NO_CONTEXT, Availability, PaddedBatch, RunContext
from embedgrpc.backends.triton.connection import Connection
from embedgrpc.backends.triton.messages import Messages, OutputRule
from embedgrpc.libraries.arrays import FloatArray, MakeInput

_LANES_MAX = 64


class TritonBackend:
    """A model on servers that speak version 2 of KServe's protocol.

    Args:
        connection: The connection to the servers; closed with the backend.
        outputs: How each output of a batch is made from the server's.
        inputs: How inputs other than ids, mask and types are made.
        lanes: The number of batches that may run at once; 0 for one per instance of the model, and
            one more that is in transit.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        outputs: Mapping[str, OutputRule],
        inputs: Mapping[str, MakeInput],
        lanes: int = 0,
    ) -> None:
        self._connection = connection
        self._lanes = lanes or min(connection.instances + 1, _LANES_MAX)
        self._messages = Messages(
            model=connection.model,
            version=connection.version,
            graph=connection.graph,
            outputs=outputs,
            inputs=inputs,
        )

    @property
    def lanes(self) -> int:
        """The number of batches that can run at once."""
        return self._lanes

    @property
    def lanes_compete(self) -> bool:
        """False: each batch has its own instance."""
        return False

    @property
    def can_give_way(self) -> bool:
        """False: Triton decides what runs first."""
        return False

    @property
    def parallelism(self) -> int:
        """The number of batches that run in the time of one: one per instance."""
        return max(self._connection.instances, 1)

    @property
    def device(self) -> str:
        """The word "triton"."""
        return "triton"

    @property
    def availability(self) -> Availability:
        """Whether any server can be reached."""
        return self._connection.availability

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Run a batch on a server, in several requests if it is larger than one may be.

        Args:
            batch: The sequences and the wanted outputs.
            context: The callers' limits. Its metadata is sent along; its cancellation or its
                deadline ends the call.

        Returns:
            For each name of `batch.outputs` a C-contiguous float32 array [batch, ...].

        Raises:
            BackendUnreachableError: No server is reachable, or none answered in time.
            BackendOverloadedError: The server's queue is full.
            BackendDeadlineError: The context's deadline passed first.
            BackendCancelledError: The context was cancelled first.
            BackendError: The run failed, or the answer is invalid. Messages contain neither
                inputs nor texts of the server.
        """
        self._messages.check(batch)
        until = self._connection.next_time_limit()
        parts = []
        for part in self._split(batch):
            answer = self._connection.infer(self._messages.write(part), context, until=until)
            parts.append(self._messages.read(answer, part))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in batch.outputs}

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _split(self, batch: PaddedBatch) -> list[PaddedBatch]:
        sequences, most = len(batch.input_ids), self._connection.graph.batch_max
        if not most or sequences <= most:
            return [batch]
        return [
            replace(
                batch,
                input_ids=batch.input_ids[start : start + most],
                attention_mask=batch.attention_mask[start : start + most],
                token_type_ids=batch.token_type_ids[start : start + most],
            )
            for start in range(0, sequences, most)
        ]
