"""Writes the requests that run a model, and reads the answers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from embedgrpc.backends.base import BackendError, PaddedBatch
from embedgrpc.backends.triton.served_graph import ServedGraph, ServedTensor
from embedgrpc.backends.triton.tensors import decode, encode, encode_texts
from embedgrpc.libraries.arrays import FloatArray, IntArray, MakeInput, MakeOutput


class OutputRule(Protocol):
    """How an output of a batch is made from one of the server's."""

    @property
    def served(self) -> str:
        """The name of the server's output."""
        ...

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The length of each axis after the batch; None for the number of tokens."""
        ...

    @property
    def make(self) -> MakeOutput | None:
        """Convert the server's output; None where the two are the same."""
        ...


class Messages:
    """Writes requests for one model, and reads the answers. Safe to use from any thread.

    Args:
        model: The model's name on the server.
        version: Its version there; empty for the server's choice.
        graph: The model as the server describes it.
        outputs: How each output of a batch is made.
        inputs: How inputs other than ids, mask and types are made.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        graph: ServedGraph,
        outputs: Mapping[str, OutputRule],
        inputs: Mapping[str, MakeInput],
    ) -> None:
        self._model = model
        self._version = version
        self._graph = graph
        self._outputs = outputs
        self._inputs = inputs

    def check(self, batch: PaddedBatch) -> None:
        """Refuse a batch that the server would accept and its model would fail on.

        Raises:
            BackendError: The batch is empty, its arrays differ in shape, or it asks for an unknown
                output.
        """
        shape = batch.input_ids.shape
        arrays = (batch.attention_mask, batch.token_type_ids)
        if 0 in shape or any(one.shape != shape for one in arrays):
            others = " and ".join(str(list(one.shape)) for one in arrays)
            raise BackendError(f"a batch of ids {list(shape)}, with mask and types {others}")
        for name in batch.outputs:
            if name not in self._outputs:
                raise BackendError(f"the model has no output {name}")

    def write(self, batch: PaddedBatch) -> bytes:
        """Return the serialized request for a batch that passed `check`.

        Raises:
            BackendError: A token id is too large for the type of the model's input.
        """
        sequences, tokens = batch.input_ids.shape
        text = self._graph.text
        # A text input has no axis of tokens; it may have one of texts besides the batch.
        shape = (sequences, tokens) if text is None else (sequences, *(1 for _ in text.dims))
        tensors = service_pb2.ModelInferRequest.InferInputTensor
        wanted = service_pb2.ModelInferRequest.InferRequestedOutputTensor
        served = dict.fromkeys(self._outputs[name].served for name in batch.outputs)
        request = service_pb2.ModelInferRequest(
            model_name=self._model,
            model_version=self._version,
            inputs=[
                tensors(name=one.name, datatype=one.datatype, shape=shape)
                for one in self._graph.inputs
            ],
            outputs=[wanted(name=name) for name in served],
            raw_input_contents=[self._encode(one, batch) for one in self._graph.inputs],
        )
        written: bytes = request.SerializeToString()
        return written

    def read(self, answer: bytes, batch: PaddedBatch) -> dict[str, FloatArray]:
        """Read the answer to the request for a batch.

        Returns:
            For each output of the batch float32 [batch, ...], C-contiguous.

        Raises:
            BackendError: The answer does not fit the request. Messages contain nothing of it.
        """
        try:
            response = service_pb2.ModelInferResponse.FromString(answer)
        except DecodeError:
            raise BackendError(f"the answer of {len(answer)} bytes cannot be parsed") from None
        raw: Sequence[bytes] = response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise BackendError(f"{len(response.outputs)} outputs have {len(raw)} raw contents")
        found = {tensor.name: index for index, tensor in enumerate(response.outputs)}
        decoded: dict[str, FloatArray] = {}
        results: dict[str, FloatArray] = {}
        for name in batch.outputs:
            rule = self._outputs[name]
            if rule.served not in found:
                # A Triton with a response cache may return a cached error as OK, without outputs.
                raise BackendError(f"the answer lacks the output {rule.served}")
            if rule.served not in decoded:
                index = found[rule.served]
                tensor = response.outputs[index]
                decoded[rule.served] = decode(tensor, raw[index] if raw else None)
            results[name] = _make(rule, decoded[rule.served], batch)
        return results

    def _encode(self, tensor: ServedTensor, batch: PaddedBatch) -> bytes:
        if tensor is self._graph.text:
            return encode_texts(batch.input_ids, batch.attention_mask)
        return encode(self._fill(tensor.name, batch), tensor.datatype)

    def _fill(self, name: str, batch: PaddedBatch) -> IntArray:
        match name:
            case "input_ids":
                return batch.input_ids
            case "attention_mask":
                return batch.attention_mask
            case "token_type_ids":
                return batch.token_type_ids
        return self._inputs[name](batch.input_ids, batch.attention_mask)


def _make(rule: OutputRule, served: FloatArray, batch: PaddedBatch) -> FloatArray:
    sequences, tokens = batch.input_ids.shape
    if served.shape[:1] != (sequences,):
        raise BackendError(
            f"the output {rule.served} has shape {list(served.shape)} for {sequences} sequences"
        )
    try:
        made = rule.make(served, batch.attention_mask) if rule.make else served
    except ValueError:
        made = served[:0]
    wanted = (sequences, *(tokens if size is None else size for size in rule.dims))
    if made.shape != wanted:
        raise BackendError(
            f"the output {rule.served} has shape {list(served.shape)}, and cannot become"
            f" {list(wanted)}"
        )
    # A copy: the received array is read-only and keeps the whole answer in memory.
    return np.array(made, np.float32, order="C")
