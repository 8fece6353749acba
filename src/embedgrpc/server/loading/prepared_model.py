"""What loading gives before the event loop is needed."""

from dataclasses import dataclass

from embedgrpc.backends.base import Availability, Backend
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# On two cores a batch of the default model takes 1.6 to 2.1 ms beyond what its tokens take, which
# is what about 32 tokens take.
OVERHEAD_TOKENS = 32
# The most padded tokens of a batch, by device.
_CPU_BATCH_TOKENS = 512
_GPU_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class RunnableGraph:
    """A graph that a backend runs, wherever that is.

    Attributes:
        outputs: What can be asked for, by the names of `embedgrpc.models.graphs.outputs`.
        content_hash: What the model's answers depend on, in hexadecimal.
        weight_type: What most of the weights are; empty where nobody says.
        weight_bytes: Their size; 0 where nobody says.
        place: Where it is, for people.
    """

    outputs: tuple[str, ...]
    content_hash: str
    weight_type: str
    weight_bytes: int
    place: str


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model whose threads are not started yet.

    Attributes:
        files: The model's folder.
        properties: What the model is.
        tokenizer: The model's tokenizer.
        graph: The graph that runs.
        backend: What runs it; whoever loads it closes it.
        batch_tokens: The most padded tokens of a batch where no setting says it.
        batch_sequences: The most sequences of a batch that the backend takes; 0 for no limit.
        overhead_tokens: What a batch costs beyond its tokens, in tokens.
        availability: Whether the backend can be reached; None where it is in this process.
    """

    files: ModelFiles
    properties: ModelProperties
    tokenizer: Tokenizer
    graph: RunnableGraph
    backend: Backend
    batch_tokens: int
    batch_sequences: int = 0
    overhead_tokens: int = OVERHEAD_TOKENS
    availability: Availability | None = None


def default_batch_tokens(*, on_gpu: bool) -> int:
    """Return the most padded tokens of a batch where no setting says it."""
    return _GPU_BATCH_TOKENS if on_gpu else _CPU_BATCH_TOKENS
