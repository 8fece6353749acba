"""Embeds texts with a model that computes queries otherwise than documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.pipeline import JobHandle
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.tasks.embedder import Embedder, Packed
from embedgrpc.engine.tasks.embeddings import BatchResult, Embeddings, EmbedSpec
from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.libraries.arrays import FloatArray


@dataclass(frozen=True, slots=True)
class RoutedEmbedder(Embedder):
    """Turns texts into vectors, by the route that the specification names.

    Each route has a graph, a tokenizer and a queue of its own, so texts of different routes are
    never in one batch. The other attributes are those of the first route.

    Attributes:
        routes: By name.
    """

    routes: Mapping[str, Embedder] = field(default_factory=dict)

    @classmethod
    def of(cls, routes: Mapping[str, Embedder]) -> "RoutedEmbedder":
        """Return an embedder with these routes; at least one."""
        first = next(iter(routes.values()))
        return cls(
            first.properties,
            first.tokenizer,
            first.pipeline,
            max(route.max_characters for route in routes.values()),
            first.graph_outputs,
            first.route,
            routes,
        )

    @property
    def special_token_count(self) -> int:
        """The most special tokens around a text."""
        return max(route.special_token_count for route in self.routes.values())

    @property
    def has_token_vectors(self) -> bool:
        """Whether the vectors that every route pools can be had."""
        return all(route.has_token_vectors for route in self.routes.values())

    async def embed(
        self,
        texts: Sequence[TextOrIds],
        spec: EmbedSpec,
        call: Call,
        *,
        size_bytes: int,
        pack: Callable[[BatchResult], Packed],
        field: str = "texts",
        indexed: bool = True,
        partial: bool = False,
        pack_cost: float = 1.0,
    ) -> Packed:
        """Embed the texts of one call; see `Embedder`."""
        return await self.routes[spec.route].embed(
            texts,
            spec,
            call,
            size_bytes=size_bytes,
            pack=pack,
            field=field,
            indexed=indexed,
            partial=partial,
            pack_cost=pack_cost,
        )

    async def submit(
        self,
        texts: Sequence[TextOrIds],
        spec: EmbedSpec,
        call: Call,
        sink: Sink,
        *,
        size_bytes: int,
    ) -> JobHandle:
        """Start texts that succeed or fail one by one; see `Embedder`."""
        route = self.routes[spec.route]
        return await route.submit(texts, spec, call, sink, size_bytes=size_bytes)

    async def probe(self, text: str, call: Call) -> FloatArray:
        """Embed a health check's text by every route; return all numbers, float32 [n]."""
        return np.concatenate([await route.probe(text, call) for route in self.routes.values()])

    def has_no_direction(self, rows: OutputRows, spec: EmbedSpec) -> NDArray[np.bool_] | None:
        """Return which dense vectors are zero but need unit length; bool [texts], None for none."""
        return self.routes[spec.route].has_no_direction(rows, spec)

    def finish(
        self, job: Job, indices: Sequence[int], rows: OutputRows, spec: EmbedSpec
    ) -> Embeddings:
        """Make embeddings from some rows of a job; see `Embedder`."""
        return self.routes[spec.route].finish(job, indices, rows, spec)
