"""LanceDB: an embedding function and a reranker.

Import this module before you open a table that uses the function, so that LanceDB knows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.embeddings import TextEmbeddingFunction, register
from lancedb.rerankers import Reranker
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PrivateAttr

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.errors import EncodeError
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE
from embedgrpc.client.integrations.ranker import Ranker
from embedgrpc.client.integrations.written_settings import (
    connect,
    require_fingerprint,
    require_json,
)

_SCORE = "_relevance_score"


@register("embedgrpc")
class EmbedGrpcEmbeddingFunction(TextEmbeddingFunction):
    """Embeds source texts as documents and searches as queries, with the model's prompts.

    A text that fails fails the whole call, and the error names it; a null has a null for a vector.
    The client repeats what may be repeated, so LanceDB's own `max_retries` has no effect.

    Attributes:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        api_key: The API key of the caller as a variable of LanceDB, such as "$var:embedgrpc_key";
            "" for that of the environment.
        api_key_env_var: The environment variable that holds the API key of the caller. The key
            itself is never written down.
        options: Options of `EmbedOptions` for all texts, such as {"dimensions": 256}.
        query_options: Those that differ for queries.
        client_settings: Other arguments of `Client`, such as {"tls": True}.
        fingerprint: The `Model.fingerprint` that the model must have, so that a table never mixes
            vectors of two; "" for any. Each call then asks the server first.
    """

    # A misspelt `target` would be passed over, and texts go to the default one.
    model_config = ConfigDict(extra="forbid")

    target: str = DEFAULT_TARGET
    model: str = ""
    api_key: str = Field("", repr=False)
    api_key_env_var: str = API_KEY_VARIABLE
    options: dict[str, Any] = Field(default_factory=dict)
    query_options: dict[str, Any] = Field(default_factory=dict)
    client_settings: dict[str, Any] = Field(default_factory=dict)
    fingerprint: str = ""
    _embedder: Embedder = PrivateAttr()
    _dimensions: int = PrivateAttr(0)

    def model_post_init(self, context: Any, /) -> None:
        """Check the settings; connect later.

        Raises:
            TypeError: There is no such option or setting, or it cannot be written down.
            ValueError: A value is out of range.
        """
        super().model_post_init(context)
        require_json("options", self.options)
        require_json("query_options", self.query_options)
        self._embedder = Embedder(
            connect(
                self.target,
                self.client_settings,
                api_key_env_var=self.api_key_env_var,
                api_key=self.api_key,
            ),
            model=self.model,
            options=self.options,
            query_options=self.query_options,
        )

    @staticmethod
    def sensitive_keys() -> list[str]:
        """Return the names of the settings that must be variables of LanceDB."""
        return ["api_key"]

    def ndims(self) -> int:
        """Return the length of the vectors, which the first call asks the server for."""
        if not self._dimensions:
            self._dimensions = self._embedder.dimensions()
        return self._dimensions

    def compute_query_embeddings(
        self, query: str, *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Embed a query: a list of one float32 [dimensions].

        Raises:
            EmbedGrpcError: The call failed.
        """
        require_fingerprint(self._embedder, self.fingerprint)
        return [self._embedder.embed_query(query)]

    def compute_query_embeddings_with_retry(
        self, *args: Any, **kwargs: Any
    ) -> list[NDArray[np.float32] | None]:
        """Embed a query; the client itself repeats what may be repeated."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(
        self, *args: Any, **kwargs: Any
    ) -> list[NDArray[np.float32] | None]:
        """Embed source texts; the client itself repeats what may be repeated.

        LanceDB would repeat a text that is too long as well, for minutes.
        """
        found: list[NDArray[np.float32] | None] = self.compute_source_embeddings(*args, **kwargs)
        return found

    def generate_embeddings(
        self, texts: Sequence[str | None] | NDArray[Any], *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Embed source texts: float32 [dimensions] for each, None for a null.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        require_fingerprint(self._embedder, self.fingerprint)
        given = [text for text in texts if text is not None]
        try:
            vectors = iter(self._embedder.embed_documents(given) if given else ())
        except EncodeError as error:
            if len(given) < len(texts):
                error.message += " (not counting nulls)"
                error.args = (error.message,)
            raise
        return [None if text is None else next(vectors) for text in texts]

    def __hash__(self) -> int:
        return hash((self.target, self.model))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbedGrpcEmbeddingFunction) and vars(self) == vars(other)


class EmbedGrpcReranker(Reranker):
    """Ranks what a vector, full-text or hybrid search found.

    Rows whose text is null or blank have a null for a score, and come last.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        column: The column of the texts.
        top_n: The limit of rows to return; None for all.
        return_score: "relevance", or "all" to keep the scores of the search.
        api_key_env_var: The environment variable that holds the API key of the caller.
        options: Options of `RerankOptions`.
        client_settings: Other arguments of `Client`, such as {"tls": True}.

    Raises:
        TypeError: There is no such option or setting.
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        model: str = "",
        *,
        column: str = "text",
        top_n: int | None = None,
        return_score: str = "relevance",
        api_key_env_var: str = API_KEY_VARIABLE,
        options: Mapping[str, Any] | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(return_score)
        self.column = column
        self.top_n = top_n
        connection = connect(target, client_settings, api_key_env_var=api_key_env_var)
        self._ranker = Ranker(connection, model=model, options=options)

    def rerank_hybrid(
        self, query: str, vector_results: pa.Table, fts_results: pa.Table
    ) -> pa.Table:
        """Rank the rows of both searches.

        Raises:
            EmbedGrpcError: The call failed, or a text did.
        """
        if self.score == "all":
            found = self._merge_and_keep_scores(vector_results, fts_results)
        else:
            found = self.merge_results(vector_results, fts_results)
        return self._ranked(query, found)

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Rank the rows of a vector search: see `rerank_hybrid`."""
        return self._ranked(query, vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """Rank the rows of a full-text search: see `rerank_hybrid`."""
        return self._ranked(query, fts_results)

    def _ranked(self, query: str, found: pa.Table) -> pa.Table:
        texts = found[self.column].to_pylist()
        places = [place for place, text in enumerate(texts) if text and text.strip()]
        ranked = self._ranker.rank(query, [texts[place] for place in places])
        order = [places[index] for index, _ in ranked]
        rest = sorted(set(range(len(texts))).difference(places))
        scores: list[float | None] = [score for _, score in ranked]
        scores += [None] * len(rest)
        table = found.take(pa.array([*order, *rest], pa.int64()))
        table = table.append_column(_SCORE, pa.array(scores, pa.float32()))
        if self.score == "relevance":
            table = self._keep_relevance_score(table)
        return table if self.top_n is None else table.slice(0, self.top_n)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._ranker!r})"
