"""Reads `EmbedOptions`. Errors name the field."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from weakref import ref

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Representation, TextRole, Truncation
from embedgrpc.server.contract.chunking_options import read_chunking
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.names import list_names
from embedgrpc.server.contract.options import (
    no_route,
    read_max_tokens,
    read_prompt,
    read_role,
    read_task,
    read_text_role,
    read_truncation,
)
from embedgrpc.v1 import embedding_service_pb2

ENCODINGS: Final[dict[int, Encoding]] = {
    embedding_service_pb2.VECTOR_ENCODING_UNSPECIFIED: Encoding.FLOAT32,
    embedding_service_pb2.VECTOR_ENCODING_FLOAT32: Encoding.FLOAT32,
    embedding_service_pb2.VECTOR_ENCODING_FLOAT16: Encoding.FLOAT16,
    embedding_service_pb2.VECTOR_ENCODING_BFLOAT16: Encoding.BFLOAT16,
    embedding_service_pb2.VECTOR_ENCODING_INT8: Encoding.INT8,
    embedding_service_pb2.VECTOR_ENCODING_UBINARY: Encoding.UBINARY,
}
REPRESENTATIONS: Final[dict[int, Representation]] = {
    embedding_service_pb2.REPRESENTATION_DENSE: Representation.DENSE,
    embedding_service_pb2.REPRESENTATION_SPARSE: Representation.SPARSE,
    embedding_service_pb2.REPRESENTATION_MULTI_VECTOR: Representation.MULTI_VECTOR,
}
# Callers of one model send few different options. Long ones hardly repeat, and may be megabytes of
# unknown fields.
_KNOWN_MAX = 64
_KNOWN_BYTES_MAX = 1024


class EmbedOptionsReader:
    """Reads the options of requests to one model.

    Nearly all requests of a caller have the same options, so it caches what it has checked.
    """

    def __init__(self, embedder: Embedder, *, default_truncation: Truncation) -> None:
        self._embedder = embedder
        self._default_truncation = default_truncation
        # Weakly: else the cache would keep a model in memory that has been closed.
        weakly = ref(self)

        def read_wire(wire: bytes, field: str) -> tuple[EmbedSpec, Encoding]:
            reader = weakly()
            assert reader is not None  # noqa: S101 - it is calling
            return reader.read_wire(wire, field)

        self._read_known = lru_cache(_KNOWN_MAX)(read_wire)

    def read(
        self, options: embedding_service_pb2.EmbedOptions, *, field: str
    ) -> tuple[EmbedSpec, Encoding]:
        """Return how to embed texts, and the number format of the vectors.

        Args:
            options: The request's options.
            field: The path of the options in the request.

        Raises:
            InvalidRequestError: A value is wrong for every model.
            UnsupportedError: This model cannot do what is asked for.
        """
        if options.ByteSize() > _KNOWN_BYTES_MAX:
            return self._read(options, field)
        return self._read_known(options.SerializeToString(), field)

    def read_wire(self, wire: bytes, field: str) -> tuple[EmbedSpec, Encoding]:
        """Return the same for options in wire form."""
        return self._read(embedding_service_pb2.EmbedOptions.FromString(wire), field)

    def _read(
        self, options: embedding_service_pb2.EmbedOptions, field: str
    ) -> tuple[EmbedSpec, Encoding]:
        spec = self._read_spec(options, field=field)
        self._embedder.check_spec(spec, field=field)
        return spec, _read_encoding(options.encoding, field=f"{field}.encoding")

    def _read_spec(self, options: embedding_service_pb2.EmbedOptions, *, field: str) -> EmbedSpec:
        properties = self._embedder.properties
        representations = _read_representations(options, properties, field=field)
        check_not_negative(options.dimensions, field=f"{field}.dimensions")
        if options.dimensions and Representation.DENSE not in properties.representations:
            raise UnsupportedError(
                "the model has no dense vectors",
                field=f"{field}.dimensions",
            )
        if options.dimensions > properties.vector_dimensions:
            raise InvalidRequestError(
                f"{field}.dimensions is {options.dimensions}; the model has"
                f" {properties.vector_dimensions}",
                field=f"{field}.dimensions",
                metadata={
                    "dimensions": str(options.dimensions),
                    "maxDimensions": str(properties.vector_dimensions),
                },
            )
        check_not_negative(options.max_sparse_terms, field=f"{field}.max_sparse_terms")
        role = read_role(options, properties, field=field)
        late = properties.late_interaction
        chunking = read_chunking(options, field=field)
        return EmbedSpec(
            prompt=read_prompt(options, properties, field=field),
            dimensions=options.dimensions or properties.vector_dimensions,
            normalize=options.normalize if options.HasField("normalize") else properties.normalized,
            truncation=read_truncation(
                options.truncation,
                default=Truncation.NONE if chunking else self._default_truncation,
                field=f"{field}.truncation",
            ),
            max_tokens=read_max_tokens(
                options.max_tokens,
                limit=late.max_tokens[role] if late and role else properties.max_tokens,
                special_tokens=self._embedder.tokenizer.special_token_count,
                field=f"{field}.max_tokens",
            ),
            representations=representations,
            max_sparse_terms=options.max_sparse_terms or properties.max_active_dims,
            task=read_task(options, properties, field=field),
            role=role,
            min_tokens=late.min_tokens(role) if late and role else 0,
            route=self._embedder.route,
            token_dimensions=self._read_token_dimensions(options, field=field),
            chunking=chunking,
            returns_tokens=options.token_vectors,
        )

    def _read_token_dimensions(
        self, options: embedding_service_pb2.EmbedOptions, *, field: str
    ) -> int:
        """Return the values per token vector if the model's are needed, and 0 if not."""
        if options.HasField("chunking"):
            dimensions = self._embedder.token_dimensions(field=f"{field}.chunking")
            self._embedder.check_chunks(field=f"{field}.chunking")
            return dimensions
        if options.token_vectors:
            return self._embedder.token_dimensions(field=f"{field}.token_vectors")
        return 0


class RoutedOptionsReader:
    """Reads the options of requests to a model with routes: the input type chooses the route.

    Args:
        readers: The reader of each role's route, None for texts without a role. A role that is
            missing is refused.

    Source: `encode`, `encode_query` and `encode_document` of sentence-transformers, where no name
    of a prompt chooses a route.
    """

    def __init__(self, readers: Mapping[TextRole | None, EmbedOptionsReader]) -> None:
        self._readers = readers

    def read(
        self, options: embedding_service_pb2.EmbedOptions, *, field: str
    ) -> tuple[EmbedSpec, Encoding]:
        """Return how to embed texts, and the format of vectors; see `EmbedOptionsReader`."""
        role = read_text_role(options, field=field)
        reader = self._readers.get(role)
        if reader is None:
            raise no_route(role, self._readers.keys(), field=field)
        return reader.read(options, field=field)


def _read_encoding(value: int, *, field: str) -> Encoding:
    check_enum(embedding_service_pb2.VectorEncoding, value, field=field)
    return ENCODINGS[value]


def _read_representations(
    options: embedding_service_pb2.EmbedOptions, properties: ModelProperties, *, field: str
) -> tuple[Representation, ...]:
    chosen: list[Representation] = []
    for index, asked in enumerate(options.representations):
        place = f"{field}.representations[{index}]"
        check_enum(embedding_service_pb2.Representation, asked, field=place)
        if asked == embedding_service_pb2.REPRESENTATION_UNSPECIFIED:
            raise InvalidRequestError(f"{place} is unspecified", field=place)
        representation = REPRESENTATIONS[asked]
        if representation in chosen:
            raise InvalidRequestError(f"{place} is asked for twice", field=place)
        if representation not in properties.representations:
            raise UnsupportedError(
                f"the model does not return {representation}; it returns:"
                f" {list_names(properties.representations)}",
                field=place,
                metadata={"representation": representation.value},
            )
        chosen.append(representation)
    return tuple(chosen) or properties.representations[:1]
