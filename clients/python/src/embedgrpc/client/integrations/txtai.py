"""txtai: the vectors of an index, and the similarity of its reranker."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from txtai.vectors import Vectors

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE
from embedgrpc.client.integrations.ranker import Ranker
from embedgrpc.client.integrations.written_settings import connect, require_fingerprint

_SETTINGS: Final = (
    "target",
    "api_key_env_var",
    "options",
    "query_options",
    "client_settings",
    "fingerprint",
)


class EmbedGrpcVectors(Vectors):
    """The vectors of an index whose `method` is the path of this class.

    Texts of the index get the model's prompt for documents, and searches that for queries: unless
    the configuration has `instructions`, which txtai itself writes before the texts.

    In the configuration, `path` is the id or an alias of the model, and `vectors` is a dict. The
    index keeps both, and no key:

        target: HOST:PORT or unix:PATH.
        api_key_env_var: The environment variable that holds the API key of the caller.
        options: Options of `EmbedOptions` for all texts, such as {"dimensions": 256}.
        query_options: Those that differ for queries.
        client_settings: Other arguments of `Client`, such as {"tls": True}.
        fingerprint: The `Model.fingerprint` that the model must have, so that an index never mixes
            vectors of two. Each call then asks the server first.
    """

    def loadmodel(self, path: str | None) -> Embedder:
        """Return the embedder, which connects later.

        Raises:
            TypeError: There is no such option or setting, or it may hold a secret.
            ValueError: A value is out of range.
        """
        chosen = self.config.get("vectors") or {}
        for name in chosen:
            if name not in _SETTINGS:
                raise TypeError(f"vectors have no {name!r}; there are {', '.join(_SETTINGS)}")
        options = dict(chosen.get("options", {}))
        if self.config.get("instructions"):
            options["prompt_text"] = ""
        return Embedder(
            connect(
                chosen.get("target", DEFAULT_TARGET),
                chosen.get("client_settings"),
                api_key_env_var=chosen.get("api_key_env_var", API_KEY_VARIABLE),
            ),
            model=path or "",
            options=options,
            query_options=chosen.get("query_options"),
        )

    def encode(self, data: Sequence[str], category: str | None = None) -> NDArray[np.float32]:
        """Embed texts: float32 [texts, dimensions].

        Args:
            data: The texts.
            category: "data" for documents; otherwise they are queries.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        embedder: Embedder = self.model
        require_fingerprint(embedder, (self.config.get("vectors") or {}).get("fingerprint", ""))
        if category == "data":
            return embedder.embed_documents(data)
        return embedder.embed_queries(data)


class EmbedGrpcSimilarity:
    """Scores texts against a query, in place of txtai's pipeline `Similarity`.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
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
        api_key_env_var: str = API_KEY_VARIABLE,
        options: Mapping[str, Any] | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        connection = connect(target, client_settings, api_key_env_var=api_key_env_var)
        self._ranker = Ranker(connection, model=model, options=options)

    def __call__(
        self, query: str | Sequence[str], texts: Sequence[str], **_: Any
    ) -> list[tuple[int, float]] | list[list[tuple[int, float]]]:
        """Rank texts.

        Args:
            query: A query, or several.
            texts: The texts.

        Returns:
            The position and the score of each text, best first; for several queries, such a list
            for each.

        Raises:
            EmbedGrpcError: The call failed, or a text did.
        """
        if isinstance(query, str):
            return self._ranker.rank(query, texts)
        return [self._ranker.rank(one, texts) for one in query]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._ranker!r})"
