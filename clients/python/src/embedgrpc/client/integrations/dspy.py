"""DSPy: an embedder."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.enums import InputType
from embedgrpc.client.integrations.connection import connection_to
from embedgrpc.client.integrations.keys import ApiKey
from embedgrpc.client.integrations.plain_embedder import PlainEmbedder


class EmbedGrpcEmbedder(dspy.Embedder):
    """An embedder whose `acall` waits without blocking the event loop.

    It may also be the function of another `dspy.Embedder`. That one keeps vectors in DSPy's cache,
    under a name that says which model made them, and how.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        input_type: The role of the texts, for models whose queries have another prompt than their
            documents; None for the model's default prompt.
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
        api_key: ApiKey | None = None,
        options: Mapping[str, Any] | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._embedder = PlainEmbedder(
            connection_to(target, client_settings, api_key=api_key),
            model=model,
            options={**(options or {}), "input_type": input_type},
        )
        # DSPy's cache tells functions apart by their source, which says nothing about the model.
        super().__init__(self._embedder.embed_texts, caching=False)

    def __call__(self, inputs: str | Sequence[str], *_: Any, **__: Any) -> NDArray[np.float32]:
        """Embed texts.

        Returns:
            float32 [texts, dimensions]; [dimensions] for one str.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        return self._embedder.embed_texts(inputs)

    async def acall(self, inputs: str | Sequence[str], *_: Any, **__: Any) -> NDArray[np.float32]:
        """Embed texts: see `__call__`."""
        return await self._embedder.embed_texts_async(inputs)

    @property
    def __name__(self) -> str:
        # The key of DSPy's cache, where this is the function of another embedder.
        return self._embedder.identity()

    def __deepcopy__(self, _: Any) -> "EmbedGrpcEmbedder":
        return self
