"""The methods that both clients have, with their documentation."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from typing import Unpack

from embedgrpc.client.async_embed_stream import AsyncEmbedStream
from embedgrpc.client.channel import ChannelOwner
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE
from embedgrpc.client.embed_stream import EmbedStream
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import EmbedOptions, RerankOptions
from embedgrpc.client.result_types import Embeddings, Ranking
from embedgrpc.client.stream_state import StreamInputs
from embedgrpc.client.unary_calls import HealthStatus


class ClientApi(ChannelOwner, ABC):
    """The methods of `Client`; those of `AsyncClient` are the same, to be awaited."""

    @abstractmethod
    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings | Awaitable[Embeddings]:
        """Embed a batch of texts. If one of them fails, the whole call fails.

        Args:
            texts: At least one text, at most `Model.max_inputs`.
            model: The id or an alias of a model; "" for the server's default.
            timeout_s: The deadline in seconds; None for the client's.
            options: See `EmbedOptions`.

        Returns:
            The embeddings, in the order of the texts.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def embed_stream(
        self,
        inputs: StreamInputs,
        *,
        model: str = "",
        order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbedStream | AsyncEmbedStream:
        """Embed any number of texts. A text that cannot be embedded fails alone.

        Args:
            inputs: Texts, or pairs of an id and a text. The client reads no further than the
                server has room for, so the iterable may be endless. `AsyncClient` also takes
                asynchronous iterables.
            model: The id or an alias of a model; "" for the server's default.
            order: The order of the results: that of the inputs, or "completion", which is
                faster.
            batch_size: The limit of inputs in one message. An input waits until its message is
                full: set 1 where inputs arrive slowly.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            options: See `EmbedOptions`.

        Returns:
            The results. Iterate over them; close the stream to stop early.

        Raises:
            InputTooLongError: The prompt or the name of the model exceeds the size of a message.
            TypeError: An option has the wrong type, or `inputs` is a str.
            ValueError: An option is out of range.
        """

    @abstractmethod
    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking | Awaitable[Ranking]:
        """Score documents against a query. If one of them fails, the whole call fails.

        Args:
            query: The text to compare the documents with.
            documents: At least one document, at most `Model.max_inputs`.
            model: The id or an alias of a model; "" for the server's default.
            timeout_s: The deadline in seconds; None for the client's.
            options: See `RerankOptions`.

        Returns:
            The documents with their scores, best first.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def list_models(
        self, task: Task | None = None, *, timeout_s: float | None = None
    ) -> list[Model] | Awaitable[list[Model]]:
        """Return all models, sorted by id.

        Args:
            task: Return only models for this task; None for all.
            timeout_s: The deadline of each page in seconds; None for the client's.

        Raises:
            EmbedGrpcError: A call failed.
            ValueError: There is no such task.
        """

    @abstractmethod
    def get_model(self, name: str, *, timeout_s: float | None = None) -> Model | Awaitable[Model]:
        """Return the description of one model.

        Args:
            name: Its id, or an alias.
            timeout_s: The deadline in seconds; None for the client's.

        Raises:
            EmbedGrpcError: The call failed.
        """

    @abstractmethod
    def health(
        self, service: str = "", *, timeout_s: float | None = None
    ) -> HealthStatus | Awaitable[HealthStatus]:
        """Return the status of a service; SERVICE_UNKNOWN if the server does not have it.

        Args:
            service: "" for the process, the full name of a service, or SERVICE/MODEL.
            timeout_s: The deadline in seconds; None for the client's.

        Raises:
            EmbedGrpcError: The call failed.
        """

    @abstractmethod
    def close(self) -> Awaitable[None] | None:
        """Close the channel and end its calls.

        Calls that wait for their turn, and later ones, raise RuntimeError.
        """
