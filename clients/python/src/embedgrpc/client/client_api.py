"""The methods that both clients have, with their documentation."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from typing_extensions import Unpack

from embedgrpc.client.async_stream import AsyncClassifyStream, AsyncEmbedStream, AsyncRerankStream
from embedgrpc.client.channel import ChannelOwner
from embedgrpc.client.classifications import Classifications
from embedgrpc.client.classify_state import ClassifyStreamInputs
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECONNECT_S
from embedgrpc.client.embed_state import StreamInputs
from embedgrpc.client.encode_api import EncodeApi
from embedgrpc.client.enums import ResultOrder, Task
from embedgrpc.client.inputs import ClassifyInputs
from embedgrpc.client.model_description import Model
from embedgrpc.client.options import ClassifyOptions, EmbedOptions, RerankOptions, TokenizeOptions
from embedgrpc.client.rerank_state import RerankInputs
from embedgrpc.client.result_types import Embeddings, PartialEmbeddings, Ranking
from embedgrpc.client.server_description import Server
from embedgrpc.client.server_status import ModelStatus, ServerStatus
from embedgrpc.client.stream import ClassifyStream, EmbedStream, RerankStream
from embedgrpc.client.tokens import TokenCounts, TokenizedText
from embedgrpc.client.unary_calls import HealthStatus


class ClientApi(ChannelOwner, EncodeApi, ABC):
    """The methods of `Client`; those of `AsyncClient` are the same, to be awaited."""

    @abstractmethod
    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings | PartialEmbeddings | Awaitable[Embeddings] | Awaitable[PartialEmbeddings]:
        """Embed a batch of texts.

        Args:
            texts: At least one text, at most `Limits.max_inputs`.
            model: The id or an alias of a model; "" for the server's default.
            allow_partial: Whether a text that fails leaves the others unaffected: then the result
                is a `PartialEmbeddings`. If False, the whole call fails, and
                `EmbedGrpcError.field_violations` lists all texts that are at fault.
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
        with_spans: bool = False,
        order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[EmbedOptions],
    ) -> EmbedStream | AsyncEmbedStream:
        """Embed any number of texts. A text that cannot be embedded fails alone.

        Args:
            inputs: Texts, pairs of an id and a text, or a dict of texts by id. The client reads
                no further than the server has room for, so the iterable may be endless.
                `AsyncClient` also takes asynchronous iterables.
            model: The id or an alias of a model; "" for the server's default.
            with_spans: Late chunking: whether each input comes with its chunks, as `chunk_spans`
                of `embed` names them: (text, spans), or (id, text, spans), or a dict of (text,
                spans) by id.
            order: The order of the results: that of the inputs, or "completion", which is
                faster.
            batch_size: The limit of inputs in one message. An input waits until its message is
                full: set 1 where inputs arrive slowly.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            reconnect_s: How long to go on without a result after the connection breaks or the
                server stops, in seconds: the client connects again, and sends again what has no
                result. 0 to fail at once.
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
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking | Awaitable[Ranking]:
        """Score documents against a query.

        Args:
            query: The text to compare the documents with.
            documents: At least one document, at most `Limits.max_inputs`.
            model: The id or an alias of a model; "" for the server's default.
            allow_partial: Whether a document that fails leaves the others unaffected: then it is
                in `Ranking.errors`. If False, the whole call fails, and
                `EmbedGrpcError.field_violations` lists all documents that are at fault.
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
    def rerank_stream(
        self,
        inputs: RerankInputs,
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[RerankOptions],
    ) -> RerankStream | AsyncRerankStream:
        """Rank the documents of any number of queries. A query that fails, fails alone.

        Results come as they are ready: match them by id.

        Args:
            inputs: Tuples (query, documents) or (id, query, documents). The client reads at most
                one query further than the server has room for, so the iterable may be endless.
                Documents that exceed one message travel in several. `AsyncClient` also takes
                asynchronous iterables.
            model: The id or an alias of a model; "" for the server's default.
            allow_partial: As in `rerank`, for every query.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            reconnect_s: How long to go on without a result after the connection breaks or the
                server stops, in seconds: the client connects again, and sends again what has no
                result. 0 to fail at once.
            options: See `RerankOptions`.

        Returns:
            The results. Iterate over them; close the stream to stop early.

        Raises:
            InputTooLongError: A prompt or the name of the model exceeds the size of a message.
            TypeError: An option has the wrong type, or `inputs` is a str.
            ValueError: An option is out of range.
        """

    @abstractmethod
    def classify(
        self,
        inputs: ClassifyInputs,
        *,
        model: str = "",
        allow_partial: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Classifications | Awaitable[Classifications]:
        """Score texts, or pairs of texts, by the labels of a classifier.

        Args:
            inputs: Texts, or pairs (first, second) such as premise and hypothesis: at least one, at
                most `Limits.max_inputs`.
            model: The id or an alias of a model; "" for the server's default.
            allow_partial: Whether an input that fails leaves the others unaffected: then its
                `Classification` has an error. If False, the whole call fails, and
                `EmbedGrpcError.field_violations` lists all inputs that are at fault.
            timeout_s: The deadline in seconds; None for the client's.
            options: See `ClassifyOptions`.

        Returns:
            The labels of each input with their scores, in the order of the inputs.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: An input or an option has the wrong type, or texts and pairs are mixed.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def classify_stream(
        self,
        inputs: ClassifyStreamInputs,
        *,
        model: str = "",
        with_ids: bool = False,
        result_order: ResultOrder = "input",
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_s: float | None = None,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        **options: Unpack[ClassifyOptions],
    ) -> ClassifyStream | AsyncClassifyStream:
        """Classify any number of inputs. An input that fails, fails alone.

        Args:
            inputs: Texts, or pairs (first, second), or a dict of them by id. The client reads no
                further than the server has room for, so the iterable may be endless. `AsyncClient`
                also takes asynchronous iterables.
            model: The id or an alias of a model; "" for the server's default.
            with_ids: Whether each input comes with an id of yours: (id, text), or
                (id, (first, second)).
            result_order: The order of the results: that of the inputs, or "completion", which is
                faster.
            batch_size: The limit of inputs in one message. An input waits until its message is
                full: set 1 where inputs arrive slowly.
            timeout_s: The longest wait for the next response, in seconds; None for the client's.
            reconnect_s: How long to go on without a result after the connection breaks or the
                server stops, in seconds: the client connects again, and sends again what has no
                result. 0 to fail at once.
            options: See `ClassifyOptions`.

        Returns:
            The results. Iterate over them; close the stream to stop early.

        Raises:
            InputTooLongError: The name of the model exceeds the size of a message.
            TypeError: An option has the wrong type, or `inputs` is a str.
            ValueError: An option is out of range.
        """

    @abstractmethod
    def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> list[TokenizedText] | Awaitable[list[TokenizedText]]:
        """Tokenize texts as a model does, without truncation.

        Args:
            texts: At least one text, at most `Limits.max_inputs`. Texts may be empty.
            model: The id or an alias of a model; "" for the server's default.
            timeout_s: The deadline in seconds; None for the client's.
            options: See `TokenizeOptions`.

        Returns:
            The tokens of each text, in the order of the texts.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: A text or an option has the wrong type.
            ValueError: A text is not valid Unicode, or an option is out of range.
        """

    @abstractmethod
    def count_tokens(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> TokenCounts | Awaitable[TokenCounts]:
        """Count the tokens of texts as a model reads them, without truncation.

        Arguments and errors are those of `tokenize`.
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
    def get_server(self, *, timeout_s: float | None = None) -> Server | Awaitable[Server]:
        """Return the description of the server: version, default model, limits.

        Args:
            timeout_s: The deadline in seconds; None for the client's.

        Raises:
            EmbedGrpcError: The call failed.
        """

    @abstractmethod
    def get_status(
        self, *, timeout_s: float | None = None
    ) -> ServerStatus | Awaitable[ServerStatus]:
        """Return what the server and its models do now. Needs the scope "admin".

        Args:
            timeout_s: The deadline in seconds; None for the client's.

        Raises:
            EmbedGrpcError: The call failed.
        """

    @abstractmethod
    def load_model(
        self,
        model: str = "",
        *,
        source: str = "",
        aliases: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> ModelStatus | Awaitable[ModelStatus]:
        """Load a model on the server, or load it again. Needs the scope "admin".

        The server goes on loading if the deadline passes: `get_status` tells how far it is.

        Args:
            model: Its id; a served model with this id is replaced. "" derives it from the source.
            source: Where it comes from, as in the server's configuration. "" loads the served
                model again, with the settings that it has.
            aliases: Its other names. Only with a source.
            settings: Its further settings by name, such as {"weight_type": "int8"}. Only with a
                source.
            timeout_s: The deadline in seconds; None for the client's.

        Returns:
            The model, which is served now.

        Raises:
            EmbedGrpcError: The call failed; nothing has changed, unless the deadline passed.
            TypeError: A name is no str, or a setting is no value of JSON.
            ValueError: A text is not valid Unicode.
        """

    @abstractmethod
    def unload_model(self, model: str, *, timeout_s: float | None = None) -> Awaitable[None] | None:
        """Stop to serve a model, and wait until its memory is free. Needs the scope "admin".

        Args:
            model: Its id, or an alias.
            timeout_s: The deadline in seconds; None for the client's.

        Raises:
            EmbedGrpcError: The call failed.
            TypeError: The name is no str.
            ValueError: It is not valid Unicode.
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
