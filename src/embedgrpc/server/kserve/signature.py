"""Which tensors a model takes and gives."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from embedgrpc.engine.errors import UnsupportedError
from embedgrpc.models.kinds import Representation
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel

SERVICE: Final = "inference.GRPCInferenceService"
# Models have one version; clients compare the numbers of several.
VERSION: Final = "1"
TEXT: Final = "text"
# The second text of a pair to classify.
TEXT_PAIR: Final = "text_pair"
QUERY: Final = "query"
EMBEDDING: Final = "embedding"
TOKEN_COUNT: Final = "token_count"  # noqa: S105 - no password
SCORE: Final = "score"
# What clients of NVIDIA NIM ask for.
ALIASES: Final = {"embeddings": EMBEDDING}


class Task(Enum):
    """What a model does with its inputs."""

    EMBED = auto()
    RANK = auto()
    CLASSIFY = auto()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor.

    Attributes:
        name: Its name.
        datatype: Its type in the protocol's terms.
        sizes: Its shape for one input: the batch comes in front.
        optional: Whether a request may leave it out.
    """

    name: str
    datatype: str
    sizes: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a model.

    Attributes:
        task: What it does.
        inputs: What it takes.
        outputs: What it gives.
    """

    task: Task
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def find_signature(loaded: LoadedModel) -> Signature | None:
    """Return the tensors of a model; None for one that has no place in this protocol."""
    text = Tensor(TEXT, "BYTES", (1,))
    properties = loaded.properties
    if loaded.embedder is not None and Representation.DENSE in properties.representations:
        embedding = Tensor(EMBEDDING, "FP32", (properties.vector_dimensions,))
        return Signature(Task.EMBED, (text,), (embedding, Tensor(TOKEN_COUNT, "INT32", ())))
    if loaded.reranker is not None:
        query = Tensor(QUERY, "BYTES", (1,))
        return Signature(Task.RANK, (query, text), (Tensor(SCORE, "FP32", (1,)),))
    if loaded.classifier is not None:
        second = Tensor(TEXT_PAIR, "BYTES", (1,), optional=True)
        score = Tensor(SCORE, "FP32", (len(properties.labels),))
        return Signature(Task.CLASSIFY, (text, second), (score,))
    return None


def can_infer(loaded: LoadedModel) -> bool:
    """Return whether a model has a place in this protocol."""
    return find_signature(loaded) is not None


def signature_of(served: ServedModel) -> tuple[LoadedModel, Signature]:
    """Return a model and its tensors.

    Raises:
        BackendUnavailableError: It cannot be called now.
        UnsupportedError: It has neither dense vectors nor scores.
    """
    loaded = served.ready()
    signature = find_signature(loaded)
    if signature is None:
        raise UnsupportedError(
            f"the model {served.id} has neither dense vectors nor scores, which {SERVICE} serves:"
            " call it through embedgrpc.v1",
            field="model_name",
            metadata={"label": "WRONG_TASK", "model": served.id},
        )
    return loaded, signature
