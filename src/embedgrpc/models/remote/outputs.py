"""Plans how to make our outputs from those of a model on a server, by their names.

A repository that `embedgrpc` wrote serves the outputs of `embedgrpc.models.graphs.outputs`. Other
repositories use the names of exporters, and the missing steps run here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embedgrpc.libraries.arrays import FloatArray, IntArray, MakeOutput
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.onnx_outputs import Dims
from embedgrpc.models.folder.m3_names import DENSE_NAMES, VECTOR_NAMES, WEIGHT_NAMES
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.graphs.output_sizes import output_sizes
from embedgrpc.models.graphs.outputs import (
    HIDDEN_NAMES,
    LOGITS,
    OUTPUTS,
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_VECTORS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Kind, Representation
from embedgrpc.models.remote.token_pooling import pool, scale_to_unit

# After the batch.
_HIDDEN_AXES = 2


@dataclass(frozen=True, slots=True)
class ServedOutput:
    """How to make one of our outputs from one of the server's.

    Attributes:
        served: The name of the server's output.
        dims: The length of each axis of our output after the batch; None for the number of tokens.
        make: Makes our output; None if the two are the same.
    """

    served: str
    dims: Dims
    make: MakeOutput | None = None


def find_token_outputs(outputs: Mapping[str, Dims], *, ours: bool) -> ServedTokenOutputs:
    """Return which outputs per token a server has.

    Args:
        outputs: The length of each axis after the batch, by output.
        ours: Whether `embedgrpc` wrote the repository. In others, `token_embeddings` are the
            vectors that a dense vector is pooled from.
    """
    vectors = _first(outputs, (TOKEN_EMBEDDINGS,) if ours else VECTOR_NAMES)
    return ServedTokenOutputs(
        token_weights=bool(_first(outputs, (TOKEN_WEIGHTS, *WEIGHT_NAMES))),
        token_vectors=bool(vectors),
        vector_dimensions=(outputs[vectors] or (None,))[-1] or 0 if vectors else 0,
    )


def plan_outputs(
    outputs: Mapping[str, Dims], properties: ModelProperties, *, ours: bool, model: str
) -> Mapping[str, ServedOutput]:
    """Return how to make each output that the engine may ask for, by our names.

    Args:
        outputs: The length of each axis after the batch, by output.
        properties: The model's properties.
        ours: Whether `embedgrpc` wrote the repository.
        model: The model's name on the server, for messages.

    Raises:
        ModelError: The server lacks an output that the model needs, or its shape is not what the
            model's files say.
    """
    plan = _Plan(outputs, properties, model)
    if ours:
        return plan.take_ours()
    if properties.kind is not Kind.EMBEDDING:
        name = plan.find((properties.output or LOGITS,))
        return {LOGITS: plan.checked(LOGITS, name, output_sizes(properties)[LOGITS], _as_matrix)}
    found: dict[str, ServedOutput] = {}
    if Representation.DENSE in properties.representations:
        found |= {**plan.find_dense(), **plan.find_hidden()}
    if Representation.SPARSE in properties.representations:
        found |= plan.find_sparse()
    if Representation.MULTI_VECTOR in properties.representations:
        name = plan.find(VECTOR_NAMES)
        dims = (None, properties.multi_vector_dimensions)
        found[TOKEN_EMBEDDINGS] = plan.checked(TOKEN_EMBEDDINGS, name, dims, _align_vectors)
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    outputs: Mapping[str, Dims]
    properties: ModelProperties
    model: str

    def take_ours(self) -> Mapping[str, ServedOutput]:
        dims = self._dims()
        dense = Representation.DENSE in self.properties.representations
        needed = [SENTENCE_EMBEDDING] if dense else []
        if self.properties.splade:
            needed.append(VOCABULARY_WEIGHTS)
        if self.properties.kind is not Kind.EMBEDDING:
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
        configured = (properties.output,) if properties.output else ()
        name = self.find(configured or (SENTENCE_EMBEDDING, *DENSE_NAMES, *HIDDEN_NAMES))
        if len(self.outputs[name]) == _HIDDEN_AXES:
            return self._pool(name)
        dims = (properties.dimensions,)
        # Whether the server's vectors have unit length is unknown; scaling those changes nothing.
        make = (lambda vectors, _: scale_to_unit(vectors)) if properties.normalize else None
        found = {SENTENCE_EMBEDDING: self.checked(SENTENCE_EMBEDDING, name, dims, make)}
        if properties.normalize and POOLED_EMBEDDING in self.outputs:
            found[POOLED_EMBEDDING] = self.checked(POOLED_EMBEDDING, POOLED_EMBEDDING, dims, None)
        return found

    def find_hidden(self) -> Mapping[str, ServedOutput]:
        """Return the token vectors; nothing if the server does not return them, or others."""
        properties = self.properties
        names = (properties.output,) if properties.output else HIDDEN_NAMES
        name = _first(self.outputs, names)
        dims = (None, properties.token_dimensions)
        if not name or len(self.outputs[name]) != _HIDDEN_AXES or not properties.token_dimensions:
            return {}
        if self.outputs[name][-1] not in {None, properties.token_dimensions}:
            return {}
        return {TOKEN_VECTORS: ServedOutput(name, dims)}

    def find_sparse(self) -> Mapping[str, ServedOutput]:
        if self.properties.splade:
            # Not from logits: one for each token and vocabulary entry is too much to send.
            name = self.find((VOCABULARY_WEIGHTS,))
            dims = (self.properties.sparse_dimensions,)
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

    def checked(self, ours: str, name: str, dims: Dims, make: MakeOutput | None) -> ServedOutput:
        """Return an output whose declared shape fits the model's files."""
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

    def _dims(self) -> Mapping[str, Dims]:
        """Return the shapes after the batch of the outputs that the model has, by our names."""
        if self.properties.kind is not Kind.EMBEDDING:
            names = [LOGITS]
        else:
            names = []
            forms = self.properties.representations
            if Representation.DENSE in forms:
                names += [SENTENCE_EMBEDDING, POOLED_EMBEDDING, TOKEN_VECTORS]
            if Representation.SPARSE in forms:
                names.append(VOCABULARY_WEIGHTS if self.properties.splade else TOKEN_WEIGHTS)
            if Representation.MULTI_VECTOR in forms:
                names.append(TOKEN_EMBEDDINGS)
        sizes = output_sizes(self.properties)
        return {name: sizes[name] for name in names}


def _first(outputs: Mapping[str, Dims], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in outputs), "")


def _describe(dims: Dims) -> str:
    return str(["any" if size is None else size for size in dims]).replace("'", "")


def _as_matrix(logits: FloatArray, mask: IntArray) -> FloatArray:
    return logits.reshape(len(mask), -1)


def _as_weights(weights: FloatArray, mask: IntArray) -> FloatArray:
    """Return float32 [batch, tokens], never below 0, from [batch, tokens, 1]."""
    return np.maximum(weights, np.float32(0)).reshape(mask.shape)


def _align_vectors(vectors: FloatArray, mask: IntArray) -> FloatArray:
    """Scale vectors to length 1, and add a row of zeros if the first token's is left out."""
    missing = mask.shape[1] - vectors.shape[1]
    if missing not in {0, 1}:
        raise ValueError(f"{vectors.shape[1]} vectors for {mask.shape[1]} tokens")
    return scale_to_unit(np.pad(vectors, ((0, 0), (missing, 0), (0, 0))))
