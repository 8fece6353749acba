"""Chroma: an embedding function, and one for sparse vectors.

Import this module before you open a collection that uses one of them, so that Chroma knows them.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    Space,
    SparseEmbeddingFunction,
    SparseVectors,
)
from chromadb.api.types import SparseVector as ChromaSparseVector
from chromadb.utils.embedding_functions import (
    register_embedding_function,
    register_sparse_embedding_function,
)
from typing_extensions import Never, Self

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE
from embedgrpc.client.integrations.written_settings import (
    connect,
    require_fingerprint,
    require_json,
)
from embedgrpc.client.suggestions import unknown_argument_error
from embedgrpc.client.vectors import SparseVector

# Chroma has no Manhattan distance: the Euclidean is the nearest to it.
_SPACES: Final[Mapping[str, Space]] = {
    "cosine": "cosine",
    "dot": "ip",
    "euclidean": "l2",
    "manhattan": "l2",
}
_TYPES: Final[Mapping[str, type]] = {
    "target": str,
    "model": str,
    "api_key_env_var": str,
    "options": dict,
    "query_options": dict,
    "client_settings": dict,
    "fingerprint": str,
}
# What makes other vectors, which would not fit those of the collection.
_OF_VECTORS: Final = ("model", "options", "query_options", "fingerprint")


class _Configured:
    """The settings of both functions, which Chroma writes down with a collection."""

    _is_sparse: ClassVar[bool]

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        model: str = "",
        *,
        api_key_env_var: str = API_KEY_VARIABLE,
        options: Mapping[str, Any] | None = None,
        query_options: Mapping[str, Any] | None = None,
        client_settings: Mapping[str, Any] | None = None,
        fingerprint: str = "",
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unknown_argument_error(type(self).__name__, unknown, _TYPES)
        self._config: dict[str, Any] = {
            "target": target,
            "model": model,
            "api_key_env_var": api_key_env_var,
            "options": dict(options or {}),
            "query_options": dict(query_options or {}),
            "client_settings": dict(client_settings or {}),
            "fingerprint": fingerprint,
        }
        require_json("options", self._config["options"])
        require_json("query_options", self._config["query_options"])
        self._embedder = Embedder(
            connect(target, client_settings, api_key_env_var=api_key_env_var),
            model=model,
            options=options,
            query_options=query_options,
            is_sparse=self._is_sparse,
        )

    @classmethod
    def build_from_config(cls, config: dict[str, Any]) -> Self:
        """Make the function that has these settings.

        Raises:
            ValueError: There is no such setting, or one has the wrong type.
        """
        cls.validate_config(config)
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Return the settings, as Chroma writes them down."""
        return {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in self._config.items()
        }

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Check settings.

        Raises:
            ValueError: There is no such setting, or one has the wrong type.
        """
        for name, value in config.items():
            if name not in _TYPES:
                raise ValueError(f"no setting {name!r}; there are {', '.join(_TYPES)}")
            if not isinstance(value, _TYPES[name]):
                kind = _TYPES[name].__name__
                raise ValueError(f"{name} is not a {kind}")  # noqa: TRY004 -- as in Chroma's own

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Check that new settings make the same vectors as the old ones.

        Raises:
            ValueError: They make others.
        """
        for name in _OF_VECTORS:
            is_same = name not in new_config or new_config[name] == old_config.get(name)
            is_first = name == "fingerprint" and not old_config.get(name)
            if not is_same and not is_first:
                raise ValueError(
                    f"another {name} makes other vectors than those of the collection: embed its"
                    " documents anew, in another collection"
                )

    def _require_fingerprint(self) -> None:
        require_fingerprint(self._embedder, self._config["fingerprint"])


@register_embedding_function
class EmbedGrpcEmbeddingFunction(_Configured, EmbeddingFunction[Documents]):
    """Embeds documents and queries, each with the model's prompt for them.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        api_key_env_var: The environment variable that holds the API key of the caller. The key
            itself is never written down.
        options: Options of `EmbedOptions` for all texts, such as {"dimensions": 256}.
        query_options: Those that differ for queries.
        client_settings: Other arguments of `Client`, such as {"tls": True}.
        fingerprint: The `Model.fingerprint` that the model must have, so that a collection never
            mixes vectors of two; "" for any. Each call then asks the server first.
        unknown: Nothing; any other argument is an error.

    Raises:
        TypeError: There is no such option or setting, or it cannot be written down.
        ValueError: A value is out of range.
    """

    _is_sparse = False

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 -- Chroma checks this name
        """Embed documents: float32 [dimensions] for each.

        Raises:
            EncodeError: Documents failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        self._require_fingerprint()
        return list(self._embedder.embed_documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 -- as above
        """Embed queries: float32 [dimensions] for each."""
        self._require_fingerprint()
        return list(self._embedder.embed_queries(input))

    @staticmethod
    def name() -> str:
        """Return the name in the settings of a collection."""
        return "embedgrpc"

    def default_space(self) -> Space:
        """Return the space of the model's own similarity; cosine if no server responds."""
        try:
            return _SPACES[self._embedder.describe().similarity]
        except EmbedGrpcError as error:
            # Were it raised, Chroma would write down no function at all, and say so to nobody.
            warnings.warn(
                f"the collection compares by cosine, as no server says how: {error}", stacklevel=2
            )
            return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return the spaces that order documents as the model's own similarity does."""
        try:
            described = self._embedder.describe()
        except EmbedGrpcError:
            return ["cosine", "l2", "ip"]
        # Of vectors of unit length, all three order documents alike.
        if self._config["options"].get("normalize", described.normalized):
            return ["cosine", "l2", "ip"]
        return [_SPACES[described.similarity]]


@register_sparse_embedding_function
class EmbedGrpcSparseEmbeddingFunction(_Configured, SparseEmbeddingFunction[Documents]):
    """Embeds documents and queries as sparse vectors.

    Arguments and errors are those of `EmbedGrpcEmbeddingFunction`.
    """

    _is_sparse = True

    def __call__(self, input: Documents) -> SparseVectors:  # noqa: A002 -- Chroma checks this name
        """Embed documents.

        Raises:
            EmbedGrpcError: A document failed, or the call did.
        """
        self._require_fingerprint()
        return [_sparse(one) for one in self._embedder.sparse_documents(input)]

    def embed_query(self, input: Documents) -> SparseVectors:  # noqa: A002 -- as above
        """Embed queries."""
        self._require_fingerprint()
        return [_sparse(one) for one in self._embedder.sparse_queries(input)]

    @staticmethod
    def name() -> str:
        """Return the name in the settings of a collection."""
        return "embedgrpc_sparse"


def _sparse(vector: SparseVector) -> ChromaSparseVector:
    return ChromaSparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
