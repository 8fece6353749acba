"""What stands where a SentenceTransformer or a CrossEncoder did. It needs neither library.

Tensors need torch, which is imported where a call asks for them.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from embedgrpc.client.defaults import DEFAULT_TARGET
from embedgrpc.client.enums import ScoreScale
from embedgrpc.client.integrations.connection import connection_to
from embedgrpc.client.integrations.keys import ApiKey
from embedgrpc.client.integrations.pair_scores import score_pairs
from embedgrpc.client.model_description import Model
from embedgrpc.client.similarity import similarity

_PRECISIONS: Final = ("float32", "ubinary", "binary")
_BINARY_OFFSET: Final = 128
_SCALES: Final[Mapping[str, ScoreScale]] = {"Identity": "raw", "Sigmoid": "sigmoid"}


class EncodeOptions(TypedDict, total=False):
    """Further keyword options of `encode`, `encode_query` and `encode_document`.

    Attributes:
        output_value: "sentence_embedding".
        precision: "float32" (default); "ubinary" for sign bits as uint8, "binary" for the same less
            128 as int8.
        convert_to_numpy: Whether to return an array; True by default. Otherwise a list of tensors.
        convert_to_tensor: Whether to return one tensor; False by default.
        normalize_embeddings: Whether to scale vectors to unit length where the model does not;
            False by default.
        truncate_dim: The length of the vectors; None (default) for that of the object.
        device: No effect, as the server has its own.
        pool: No effect.
        chunk_size: No effect.
    """

    output_value: str
    precision: str
    convert_to_numpy: bool
    convert_to_tensor: bool
    normalize_embeddings: bool
    truncate_dim: int | None
    device: Any
    pool: Any
    chunk_size: int | None


class ServedModel:
    """A model of a server.

    Args:
        target: HOST:PORT or unix:PATH.
        model: The id or an alias of the model; "" for the server's default.
        api_key: The API key of the caller, or a function that returns it; None for that of the
            environment variable EMBEDGRPC_API_KEY.
        client_settings: Other arguments of `Client`, such as {"tls": True}.

    Raises:
        TypeError: There is no such setting, or one has the wrong type.
        ValueError: The target is no address, or settings do not fit.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        model: str = "",
        *,
        api_key: ApiKey | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._connection = connection_to(target, client_settings, api_key=api_key)
        self._model = model
        self._description: Model | None = None
        self._max_tokens = 0

    @property
    def description(self) -> Model:
        """The model, as the server described it at the first use.

        Raises:
            EmbedGrpcError: The call failed.
        """
        if self._description is None:
            client = self._connection.client()
            name = self._model or client.get_server().default_model
            self._description = client.get_model(name)
        return self._description

    @property
    def max_seq_length(self) -> int:
        """The limit of tokens in a text; set it to cut texts sooner than the model must."""
        return self._max_tokens or self.description.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        self._max_tokens = tokens

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.target!r}, {self._model!r})"


class EmbedGrpcSentenceTransformer(ServedModel):
    """A served model with the methods of a SentenceTransformer.

    Arguments and errors are those of `ServedModel`.

    Attributes:
        truncate_dim: The length of the vectors; None for the model's.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        model: str = "",
        *,
        truncate_dim: int | None = None,
        api_key: ApiKey | None = None,
        client_settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, model, api_key=api_key, client_settings=client_settings)
        self.truncate_dim = truncate_dim

    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,  # noqa: FBT001 -- as a SentenceTransformer has it
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embed any number of texts.

        Args:
            inputs: The texts, or one str.
            prompt_name: A key of `prompts`.
            prompt: The prompt itself; it goes before `prompt_name`.
            batch_size: No effect, as the server makes its own batches.
            show_progress_bar: Whether to show progress on standard error; None for no.
            options: See `EncodeOptions`.

        Returns:
            float32 [texts, dimensions], in the order of the texts; [dimensions] for one str.

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
            TypeError: There is no such option.
            ValueError: An option has a value that no server can serve.
        """
        chosen = _prompt(prompt_name, prompt)
        del batch_size
        return self._encode(inputs, chosen, show_progress_bar=bool(show_progress_bar), **options)

    def encode_query(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,  # noqa: FBT001 -- as above
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embed queries: `encode` with the model's prompt for them, unless you name a prompt."""
        chosen = _prompt(prompt_name, prompt) or {"input_type": "query"}
        del batch_size
        return self._encode(inputs, chosen, show_progress_bar=bool(show_progress_bar), **options)

    def encode_document(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,  # noqa: FBT001 -- as above
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embed documents: `encode` with the model's prompt for them, unless you name a prompt."""
        chosen = _prompt(prompt_name, prompt) or {"input_type": "document"}
        del batch_size
        return self._encode(inputs, chosen, show_progress_bar=bool(show_progress_bar), **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare every vector of one array or tensor with every vector of another.

        Returns:
            float32 [n, m], by the model's own function; a tensor for tensors.

        Raises:
            EmbedGrpcError: The server cannot say which function the model has.
            ValueError: The dimensions differ.
        """
        left, right = _array(embeddings1), _array(embeddings2)
        scores = similarity(left, right, self.similarity_fn_name)
        return _like(embeddings1, scores)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare the vectors of two arrays or tensors one by one: float32 [n].

        Raises:
            EmbedGrpcError: The server cannot say which function the model has.
            ValueError: The shapes differ.
        """
        left, right = np.atleast_2d(_array(embeddings1)), np.atleast_2d(_array(embeddings2))
        function = self.similarity_fn_name
        pairs = [
            similarity(one, other, function)[0, 0] for one, other in zip(left, right, strict=True)
        ]
        return _like(embeddings1, np.asarray(pairs, np.float32))

    @property
    def similarity_fn_name(self) -> str:
        """The function that compares vectors, such as "cosine"."""
        return self.description.similarity

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts of the model by name."""
        return dict(self.description.prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt that applies where a call names none."""
        return self.description.default_prompt_name or None

    def get_embedding_dimension(self) -> int:
        """Return the length of the vectors."""
        return self.truncate_dim or self.description.dimensions

    def get_sentence_embedding_dimension(self) -> int:
        """Return the length of the vectors."""
        return self.get_embedding_dimension()

    def _encode(
        self,
        inputs: str | Iterable[str],
        prompt: Mapping[str, Any],
        *,
        show_progress_bar: bool,
        **options: Unpack[EncodeOptions],
    ) -> Any:
        _check_options(options)
        precision = options.get("precision", "float32")
        is_normalized = bool(options.get("normalize_embeddings"))
        dimensions = options.get("truncate_dim") or self.truncate_dim or 0
        # The server scales short vectors to unit length where the model does so with long ones; a
        # SentenceTransformer only cuts them.
        is_cut_here = bool(dimensions) and precision == "float32" and not is_normalized
        vectors = self._connection.client().encode(
            inputs,
            model=self._model,
            show_progress_bar=show_progress_bar,
            dimensions=0 if is_cut_here else dimensions,
            normalize=True if is_normalized else None,
            encoding="float32" if precision == "float32" else "ubinary",
            max_tokens=self._max_tokens,
            **cast("Any", prompt),
        )
        if is_cut_here:
            vectors = vectors[..., :dimensions]
        if precision == "binary":
            vectors = (vectors.astype(np.int16) - _BINARY_OFFSET).astype(np.int8)
        is_array = options.get("convert_to_numpy", True) and not options.get("convert_to_tensor")
        if is_array:
            return vectors
        is_list = not options.get("convert_to_tensor") and vectors.ndim > 1
        return list(to_tensor(vectors)) if is_list else to_tensor(vectors)


class EmbedGrpcCrossEncoder(ServedModel):
    """A served model that ranks, with the methods of a CrossEncoder.

    Arguments and errors are those of `ServedModel`.
    """

    def predict(
        self,
        inputs: Sequence[Any],
        *,
        activation_fn: Any = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **_: Any,
    ) -> Any:
        """Score pairs of texts.

        Args:
            inputs: Pairs (query, document), or one pair.
            activation_fn: None for the scale of the model's own scores, or an Identity or Sigmoid
                of torch.
            convert_to_numpy: Whether to return an array; otherwise a list of tensors.
            convert_to_tensor: Whether to return one tensor.

        Returns:
            float32 [pairs], in their order; one number for one pair. Options about batches, devices
            and progress have no effect.

        Raises:
            EmbedGrpcError: The call failed, or a pair did.
            ValueError: The activation function is another one, or the inputs are no pairs.
        """
        is_one = len(inputs) > 0 and isinstance(inputs[0], str)
        pairs = [(one[0], one[1]) for one in ([inputs] if is_one else inputs)]
        scores = self._score(pairs, activation_fn)
        if is_one:
            scores = scores[0]
        if convert_to_numpy and not convert_to_tensor:
            return scores
        return to_tensor(scores) if convert_to_tensor or is_one else list(to_tensor(scores))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,  # noqa: FBT001, FBT002 -- as a CrossEncoder has it
        *,
        activation_fn: Any = None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """Rank documents: see `Client.rank`, and `predict` for the activation function."""
        return self._connection.client().rank(
            query,
            documents,
            top_k=top_k,
            model=self._model,
            return_documents=return_documents,
            score_scale=_scale(activation_fn),
            max_tokens=self._max_tokens,
        )

    def _score(self, pairs: Sequence[tuple[str, str]], activation_fn: Any) -> NDArray[np.float32]:
        client = self._connection.client()
        return score_pairs(
            client,
            pairs,
            model=self._model,
            score_scale=_scale(activation_fn),
            max_tokens=self._max_tokens,
        )


def _prompt(name: str | None, text: str | None) -> dict[str, Any]:
    if text is not None:
        return {"prompt_text": text}
    return {"prompt_name": name} if name is not None else {}


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in EncodeOptions.__annotations__:
            raise TypeError(f"no option {name!r}")
    if options.get("output_value", "sentence_embedding") != "sentence_embedding":
        raise ValueError("output_value is not 'sentence_embedding'; use the client itself")
    precision = options.get("precision", "float32")
    if precision not in _PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; there are {', '.join(_PRECISIONS)}, and the client itself"
            " has int8 vectors with their scales"
        )


def _scale(activation_fn: Any) -> ScoreScale | None:
    if activation_fn is None:
        return None
    scale = _SCALES.get(type(activation_fn).__name__)
    if scale is None:
        raise ValueError(f"activation_fn is none of {', '.join(_SCALES)}")
    return scale


def to_tensor(values: Any) -> Any:
    """Return the tensor of an array, with its numbers."""
    return importlib.import_module("torch").from_numpy(np.asarray(values))


def _array(vectors: Any) -> NDArray[Any]:
    """Return an array of what may be a tensor, or a list of tensors."""
    if isinstance(vectors, list) and vectors and _is_tensor(vectors[0]):
        return np.stack([_array(one) for one in vectors])
    if _is_tensor(vectors):
        vectors = vectors.detach().cpu().float()
    return np.asarray(vectors)


def _like(given: Any, values: NDArray[np.float32]) -> Any:
    is_tensor = _is_tensor(given[0] if isinstance(given, list) and given else given)
    return to_tensor(values) if is_tensor else values


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch"
