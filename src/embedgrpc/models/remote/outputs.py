"""Finds what a model gives whose graph runs on a server, by the names of its outputs there.

A repository that `embedgrpc` wrote serves the outputs of `embedgrpc.models.graphs.outputs`. In
others, names mean what exporters mean by them, and what is missing is made here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.onnx_outputs import Shape
from embedgrpc.models.folder.m3_names import DENSE_NAMES, VECTOR_NAMES, WEIGHT_NAMES
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.graphs.outputs import (
    LOGITS,
    OUTPUTS,
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Kind, Representation
from embedgrpc.models.remote.token_pooling import pool, scale_to_unit

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
# From an output, float32, and the mask, int64 [batch, tokens], to one of ours.
MakeOutput = Callable[[FloatArray, IntArray], FloatArray]

_HIDDEN_NAMES = ("last_hidden_state", "token_embeddings")
_HIDDEN_AXES = 2


@dataclass(frozen=True, slots=True)
class ServedOutput:
    """How an output of ours is made of one of the server's.

    Attributes:
        served: The name of the server's.
        dims: The length of each axis of ours after the batch; None for the number of tokens.
        make: Makes ours; None where it is the same.
    """

    served: str
    dims: tuple[int | None, ...]
    make: MakeOutput | None = None


def find_forms(outputs: Mapping[str, Shape], *, ours: bool) -> ServedTokenOutputs:
    """Finds what a server makes of tokens.

    Args:
        outputs: The length of each axis after the batch by output, None where it is free.
        ours: Whether `embedgrpc` wrote the repository. Elsewhere `token_embeddings` is what a
            dense vector is pooled from.
    """
    vectors = _first(outputs, (TOKEN_EMBEDDINGS,) if ours else VECTOR_NAMES)
    return ServedTokenOutputs(
        token_weights=bool(_first(outputs, (TOKEN_WEIGHTS, *WEIGHT_NAMES))),
        token_vectors=bool(vectors),
        vector_dimensions=(outputs[vectors] or (None,))[-1] or 0 if vectors else 0,
    )


def plan_outputs(
    outputs: Mapping[str, Shape], properties: ModelProperties, *, ours: bool, model: str
) -> Mapping[str, ServedOutput]:
    """Finds how each output that the engine may ask for is made.

    Args:
        outputs: The length of each axis after the batch by output, None where it is free.
        properties: What the model is.
        ours: Whether `embedgrpc` wrote the repository.
        model: What the server calls it, for messages.

    Returns:
        By the names of `embedgrpc.models.graphs.outputs`.

    Raises:
        ModelError: An output that the model needs is not served, or has another shape than the
            model's files say.
    """
    plan = _Plan(outputs, properties, model)
    if ours:
        return plan.take_ours()
    if properties.kind is Kind.CROSS_ENCODER:
        name = plan.find((properties.output or LOGITS,))
        return {LOGITS: plan.checked(LOGITS, name, (1,), _as_column)}
    found: dict[str, ServedOutput] = {}
    if Representation.DENSE in properties.representations:
        found |= plan.find_dense()
    if Representation.SPARSE in properties.representations:
        found |= plan.find_sparse()
    if Representation.MULTI_VECTOR in properties.representations:
        name = plan.find(VECTOR_NAMES)
        dims = (None, properties.multi_vector_dimensions)
        found[TOKEN_EMBEDDINGS] = plan.checked(TOKEN_EMBEDDINGS, name, dims, _align_vectors)
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    outputs: Mapping[str, Shape]
    properties: ModelProperties
    model: str

    def take_ours(self) -> Mapping[str, ServedOutput]:
        dims = self._dims()
        needed = [SENTENCE_EMBEDDING] if Representation.DENSE in self._forms() else []
        if self.properties.splade:
            needed.append(VOCABULARY_WEIGHTS)
        if self.properties.kind is Kind.CROSS_ENCODER:
            needed.append(LOGITS)
        for name in needed:
            self.find((name,))
        return {
            name: self.checked(name, name, dims[name], None)
            for name in OUTPUTS
            if name in self.outputs and name in dims
        }

    def find_dense(self) -> Mapping[str, ServedOutput]:
        properties = self.properties
        asked_for = (properties.output,) if properties.output else ()
        name = self.find(asked_for or (SENTENCE_EMBEDDING, *DENSE_NAMES, *_HIDDEN_NAMES))
        if len(self.outputs[name]) == _HIDDEN_AXES:
            return self._pool(name)
        dims = (properties.dimensions,)
        # What has unit length already stays as it is; nobody says whether it has.
        make = (lambda vectors, _: scale_to_unit(vectors)) if properties.normalize else None
        found = {SENTENCE_EMBEDDING: self.checked(SENTENCE_EMBEDDING, name, dims, make)}
        if properties.normalize and POOLED_EMBEDDING in self.outputs:
            found[POOLED_EMBEDDING] = self.checked(POOLED_EMBEDDING, POOLED_EMBEDDING, dims, None)
        return found

    def find_sparse(self) -> Mapping[str, ServedOutput]:
        if self.properties.splade:
            # A logit for each token and each entry of the vocabulary is too much to send.
            name = self.find((VOCABULARY_WEIGHTS,))
            dims: tuple[int | None, ...] = (self.properties.sparse_dimensions,)
            return {VOCABULARY_WEIGHTS: self.checked(VOCABULARY_WEIGHTS, name, dims, None)}
        name = self.find((TOKEN_WEIGHTS, *WEIGHT_NAMES))
        return {TOKEN_WEIGHTS: self.checked(TOKEN_WEIGHTS, name, (None,), _as_weights)}

    def find(self, names: tuple[str, ...]) -> str:
        name = _first(self.outputs, names)
        if not name:
            raise ModelError(
                f"the model {self.model} on Triton has the outputs {', '.join(self.outputs)}; one"
                f" must be {' or '.join(names)}, or set output for this model in the configuration"
            )
        return name

    def checked(
        self, ours: str, name: str, dims: tuple[int | None, ...], make: MakeOutput | None
    ) -> ServedOutput:
        """An output whose shape, as far as the server tells it, is what the files lead to."""
        served = self.outputs[name]
        fits = make is not None or len(served) == len(dims)
        last = served[-1] if served else None
        if not fits or (last is not None and dims[-1] is not None and last != dims[-1]):
            raise ModelError(
                f"the model {self.model} on Triton: output {name} has the shape"
                f" {_describe(served)} after the batch, and the model's files say"
                f" {_describe(dims)} for {ours}"
            )
        return ServedOutput(name, dims, make)

    def _pool(self, name: str) -> Mapping[str, ServedOutput]:
        properties = self.properties
        if properties.dense_layers:
            raise ModelError(
                f"the model {self.model} on Triton gives token vectors, and its files have Dense"
                " modules after pooling: serve its sentence_embedding instead, as `embedgrpc"
                " triton-repo` does"
            )
        size = self.outputs[name][-1]
        if size is not None and size != properties.token_dimensions:
            raise ModelError(
                f"the model {self.model} on Triton: output {name} has {size} values per token, not"
                f" the {properties.token_dimensions} that the Pooling module's config.json says"
            )

        def make_pooled(hidden: FloatArray, mask: IntArray) -> FloatArray:
            return pool(hidden, mask, properties.poolings)

        dims = (properties.dimensions,)
        if not properties.normalize:
            return {SENTENCE_EMBEDDING: ServedOutput(name, dims, make_pooled)}
        return {
            SENTENCE_EMBEDDING: ServedOutput(
                name, dims, lambda hidden, mask: scale_to_unit(make_pooled(hidden, mask))
            ),
            POOLED_EMBEDDING: ServedOutput(name, dims, make_pooled),
        }

    def _dims(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of ours after the batch, of those that the model has."""
        properties = self.properties
        dims: dict[str, tuple[int | None, ...]] = {}
        if properties.kind is Kind.CROSS_ENCODER:
            return {LOGITS: (1,)}
        if Representation.DENSE in self._forms():
            dims[SENTENCE_EMBEDDING] = dims[POOLED_EMBEDDING] = (properties.dimensions,)
        if properties.splade:
            dims[VOCABULARY_WEIGHTS] = (properties.sparse_dimensions,)
        elif Representation.SPARSE in self._forms():
            dims[TOKEN_WEIGHTS] = (None,)
        if Representation.MULTI_VECTOR in self._forms():
            dims[TOKEN_EMBEDDINGS] = (None, properties.multi_vector_dimensions)
        return dims

    def _forms(self) -> tuple[Representation, ...]:
        return self.properties.representations


def _first(outputs: Mapping[str, Shape], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in outputs), "")


def _describe(dims: Shape) -> str:
    return str(["any" if size is None else size for size in dims]).replace("'", "")


def _as_column(logits: FloatArray, mask: IntArray) -> FloatArray:
    return logits.reshape(len(mask), -1)


def _as_weights(weights: FloatArray, mask: IntArray) -> FloatArray:
    """float32 [batch, tokens] from [batch, tokens, 1], never below 0."""
    return np.maximum(weights, np.float32(0)).reshape(mask.shape)


def _align_vectors(vectors: FloatArray, mask: IntArray) -> FloatArray:
    """A vector of length 1 for each token, where the first token's may be left out."""
    missing = mask.shape[1] - vectors.shape[1]
    if missing not in {0, 1}:
        raise ValueError(f"{vectors.shape[1]} vectors for {mask.shape[1]} tokens")
    return scale_to_unit(np.pad(vectors, ((0, 0), (missing, 0), (0, 0))))
