"""A served model that embeds texts of no role, for frameworks that tell none apart."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.integrations.connection import Connection
from embedgrpc.client.integrations.embedder import check_options
from embedgrpc.client.model_description import Model


class PlainEmbedder:
    """A model that embeds texts as its options say.

    Args:
        connection: The server.
        model: The id or an alias of the model; "" for the server's default.
        options: Options of `EmbedOptions`.

    Raises:
        TypeError: There is no such option, one has the wrong type, or it asks for what frameworks
            have no room for.
        ValueError: An option is out of range, or the encoding has no floats.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        model: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.connection = connection
        self.model = model
        self.options = dict(options or {})
        check_options(self.options)

    def embed_texts(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """Embed any number of texts.

        Returns:
            float32 [texts, dimensions], in their order; [dimensions] for one str.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        return self.connection.client().encode(texts, model=self.model, **self.options)

    async def embed_texts_async(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """Embed any number of texts: see `embed_texts`."""
        client = self.connection.async_client()
        return await client.encode(texts, model=self.model, **self.options)

    def identity(self) -> str:
        """Return what tells the vectors apart from others: the model's fingerprint, the options.

        Raises:
            EmbedGrpcError: The call failed.
        """
        client = self.connection.client()
        return self._identity(client.get_model(self.model or client.get_server().default_model))

    async def identity_async(self) -> str:
        """Return what tells the vectors apart from others: see `identity`."""
        client = self.connection.async_client()
        name = self.model or (await client.get_server()).default_model
        return self._identity(await client.get_model(name))

    def _identity(self, described: Model) -> str:
        chosen = {name: value for name, value in self.options.items() if value is not None}
        return f"embedgrpc {described.fingerprint} {json.dumps(chosen, sort_keys=True)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection!r}, model={self.model!r})"
