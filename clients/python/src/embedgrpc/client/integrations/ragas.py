"""Ragas: embeddings for its metrics and test sets."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ragas.cache import CacheInterface
from ragas.embeddings.base import BaseRagasEmbedding

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.enums import InputType
from embedgrpc.client.integrations.connection import connection_to
from embedgrpc.client.integrations.embedder import several
from embedgrpc.client.integrations.keys import ApiKey
from embedgrpc.client.integrations.plain_embedder import PlainEmbedder


class EmbedGrpcEmbedding(BaseRagasEmbedding):
    """Embeds texts for Ragas, in threads or on an event loop.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        input_type: The role of the texts; None for the model's default prompt.
        cache: Where to keep vectors. The keys name the model and the options, so that models may
            share it; before each call, the server is asked which model it has.
        api_key: The API key of the caller, or a function that returns it; None for that of the
            environment variable EMBEDGRPC_API_KEY.
        options: Options of `EmbedOptions`, such as {"dimensions": 256}.
        client_settings: Other arguments of `Client`, such as {"tls": True}.

    Raises:
        TypeError: There is no such option or setting, or one has the wrong type.
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        model: str = "",
        *,
        input_type: InputType | None = None,
        cache: CacheInterface | None = None,
        api_key: ApiKey | None = None,
        options: Mapping[str, Any] | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        # Without the cache, whose keys Ragas would make of the text alone.
        super().__init__()
        self.cache = cache
        self._embedder = PlainEmbedder(
            connection_to(target, client_settings, api_key=api_key),
            model=model,
            options={**(options or {}), "input_type": input_type},
        )

    def embed_text(self, text: str, **_: Any) -> list[float]:
        """Embed a text.

        Raises:
            EmbedGrpcError: The call failed.
        """
        if self.cache is not None:
            return self.embed_texts([text])[0]
        vector: list[float] = self._embedder.embed_texts(text).tolist()
        return vector

    async def aembed_text(self, text: str, **_: Any) -> list[float]:
        """Embed a text: see `embed_text`."""
        if self.cache is not None:
            return (await self.aembed_texts([text]))[0]
        vector: list[float] = (await self._embedder.embed_texts_async(text)).tolist()
        return vector

    def embed_texts(self, texts: Sequence[str], **_: Any) -> list[list[float]]:
        """Embed any number of texts, in their order.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        if self.cache is None:
            vectors: list[list[float]] = self._embedder.embed_texts(several(texts)).tolist()
            return vectors
        kept = _Kept(self.cache, self._embedder.identity(), texts)
        if kept.missing:
            kept.add(self._embedder.embed_texts(kept.missing).tolist())
        return kept.vectors()

    async def aembed_texts(self, texts: Sequence[str], **_: Any) -> list[list[float]]:
        """Embed any number of texts: see `embed_texts`."""
        if self.cache is None:
            found = await self._embedder.embed_texts_async(several(texts))
            vectors: list[list[float]] = found.tolist()
            return vectors
        kept = _Kept(self.cache, await self._embedder.identity_async(), texts)
        if kept.missing:
            kept.add((await self._embedder.embed_texts_async(kept.missing)).tolist())
        return kept.vectors()


class _Kept:
    """The texts of one call, and which of them have a vector in the cache."""

    def __init__(self, cache: CacheInterface, identity: str, texts: Sequence[str]) -> None:
        self._cache = cache
        self._texts = texts
        self._keys = {
            text: hashlib.sha256(f"{identity}\n{text}".encode()).hexdigest()
            for text in several(texts)
        }
        self._found: dict[str, list[float]] = {
            text: cache.get(key) for text, key in self._keys.items() if cache.has_key(key)
        }
        self.missing = [text for text in self._keys if text not in self._found]

    def add(self, vectors: list[list[float]]) -> None:
        for text, vector in zip(self.missing, vectors, strict=True):
            self._found[text] = vector
            self._cache.set(self._keys[text], vector)

    def vectors(self) -> list[list[float]]:
        return [self._found[text] for text in self._texts]
