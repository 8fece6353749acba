"""A model that is ready to be run, before its threads are started."""

from collections.abc import Mapping
from dataclasses import dataclass

from embedgrpc.backends.base import Availability, Backend
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.routes import RoutedProperties
from embedgrpc.models.graphs.content_hash import hash_routes
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# The fixed cost of a batch, in tokens. For the default model on two cores it is 1.6 to 2.1 ms, the
# time of about 32 tokens.
OVERHEAD_TOKENS = 32
# The most padded tokens of a batch, by device.
_CPU_BATCH_TOKENS = 512
_GPU_BATCH_TOKENS = 8192
# A look-up takes 0.1 us a token: what a batch costs beside it, 0.4 ms, is worth 4,000 tokens.
_TABLE_BATCH_TOKENS = 16_384
_TABLE_OVERHEAD_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class RunnableGraph:
    """A graph that a backend runs, here or on a server.

    Attributes:
        outputs: Names of `embedgrpc.models.graphs.outputs`.
        content_hash: A hash of all that the model's answers depend on, in hexadecimal.
        weight_type: The type of most weights; empty where it is unknown.
        weight_bytes: 0 where it is unknown.
        place: Its path or source, for people.
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
        backend: Runs the graph; the caller closes it.
        batch_tokens: The most padded tokens of a batch where no setting says it.
        batch_sequences: The most sequences of a batch that the backend accepts; 0 for no limit.
        overhead_tokens: The fixed cost of a batch, in tokens.
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


@dataclass(frozen=True, slots=True)
class PreparedRoutes:
    """All routes of a model; most models have one.

    Attributes:
        properties: What the model is.
        by_route: Each route by its name, in the order of `properties`.
    """

    properties: RoutedProperties
    by_route: Mapping[str, PreparedModel]

    @classmethod
    def of(cls, prepared: PreparedModel) -> "PreparedRoutes":
        """Return the only route of a model."""
        return cls(RoutedProperties({"": prepared.properties}, {None: ""}), {"": prepared})

    @property
    def first(self) -> PreparedModel:
        """The first route."""
        return next(iter(self.by_route.values()))

    @property
    def fingerprint(self) -> str:
        """A hash of all that the model's answers depend on, in hexadecimal."""
        hashes = {name: one.graph.content_hash for name, one in self.by_route.items()}
        return hash_routes(hashes, self.properties.by_role)

    def alone(self) -> PreparedModel:
        """Return the route of a model that has one.

        Raises:
            ModelError: It has several.
        """
        if len(self.by_route) > 1:
            self.close()
            raise ModelError(
                f"{self.first.files.folder}: a model with several routes cannot be used here"
            )
        return self.first

    def close(self) -> None:
        """Close the backend of each route."""
        for one in self.by_route.values():
            one.backend.close()


def default_batch_tokens(*, on_gpu: bool, has_table: bool = False) -> int:
    """Return the most padded tokens of a batch where no setting says it."""
    if has_table:
        return _TABLE_BATCH_TOKENS
    return _GPU_BATCH_TOKENS if on_gpu else _CPU_BATCH_TOKENS


def overhead_tokens(*, has_table: bool) -> int:
    """Return the fixed cost of a batch, in tokens."""
    return _TABLE_OVERHEAD_TOKENS if has_table else OVERHEAD_TOKENS
