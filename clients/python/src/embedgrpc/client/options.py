"""The keyword options of the calls, and the messages that carry them."""

from collections.abc import Iterable, Sequence
from typing import TypedDict, Unpack

from embedgrpc.client.enums import (
    Encoding,
    InputType,
    Representation,
    ScoreScale,
    Truncation,
    enum_value,
)
from embedgrpc.client.suggestions import quote, suggest
from embedgrpc.v1 import common_pb2, rerank_service_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb


class EmbedOptions(TypedDict, total=False):
    """Keyword options of `embed` and `embed_stream`, all optional.

    Set at most one of `input_type`, `prompt_name` and `prompt_text`.

    Attributes:
        input_type: The role of the texts. The server maps it to a prompt of the model.
        prompt_name: A key of `Model.prompts`.
        prompt_text: The prompt itself, a prefix of each text; "" for none.
        dimensions: The length of dense vectors; 0 (default) for the model's.
        normalize: Whether to scale dense vectors to unit length; None (default) for the
            model's setting.
        encoding: The encoding of numbers on the wire; "float32" by default.
        truncation: Where to cut texts that are too long, or "none" to reject them; the server's
            setting by default.
        max_tokens: The limit of tokens in a text; 0 (default) for the model's.
        representations: What to return; empty (default) for the model's first.
        max_sparse_terms: The limit of terms in a sparse vector, the heaviest first; 0 (default)
            for no limit.
    """

    input_type: InputType | None
    prompt_name: str | None
    prompt_text: str | None
    dimensions: int
    normalize: bool | None
    encoding: Encoding
    truncation: Truncation | None
    max_tokens: int
    representations: Sequence[Representation]
    max_sparse_terms: int


class RerankOptions(TypedDict, total=False):
    """Keyword options of `rerank`, all optional.

    Attributes:
        top_n: The limit of documents to return; 0 (default) for all.
        return_documents: Whether to return the documents with their scores; False by default.
        score_scale: The scale of the scores; the model's by default.
        truncation: Where to cut when query and document are too long together, or "none" to
            reject them; the server's setting by default.
        max_tokens: The limit of tokens in a document; 0 (default) for the model's.
        instruction: An instruction, for models that take one; "" by default.
    """

    top_n: int
    return_documents: bool
    score_scale: ScoreScale | None
    truncation: Truncation | None
    max_tokens: int
    instruction: str


def embed_options(**options: Unpack[EmbedOptions]) -> pb.EmbedOptions:
    """Build the options of an embedding request.

    Raises:
        TypeError: An option is not one of `EmbedOptions`, or has the wrong type.
        ValueError: An enum has no such value, or more than one prompt is set.
    """
    _require_known(options, EmbedOptions)
    prompts: dict[str, str | None] = {
        "input_type": enum_value(common_pb2.InputType, options.get("input_type")),
        "prompt_name": options.get("prompt_name"),
        "prompt_text": options.get("prompt_text"),
    }
    prompt = {name: valid_text(name, text) for name, text in prompts.items() if text is not None}
    if len(prompt) > 1:
        raise ValueError("set only one of input_type, prompt_name and prompt_text")
    return pb.EmbedOptions(
        representations=[
            enum_value(pb.Representation, name) for name in options.get("representations", ())
        ],
        input_type=prompt.get("input_type"),
        prompt_name=prompt.get("prompt_name"),
        prompt_text=prompt.get("prompt_text"),
        dimensions=options.get("dimensions", 0),
        normalize=options.get("normalize"),
        encoding=enum_value(pb.VectorEncoding, options.get("encoding", "float32")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens=options.get("max_tokens", 0),
        max_sparse_terms=options.get("max_sparse_terms", 0),
    )


def rerank_request(
    query: str, documents: Sequence[str], model: str, **options: Unpack[RerankOptions]
) -> rerank_service_pb2.RerankRequest:
    """Build the request of Rerank.

    Args:
        query: The text to compare the documents with.
        documents: The documents, as `valid_texts` returns them.
        model: The id or an alias of a model; "" for the server's default.
        options: See `RerankOptions`.

    Raises:
        TypeError: An option is not one of `RerankOptions`, or a value has the wrong type.
        ValueError: An enum has no such value, or a text is not valid Unicode.
    """
    _require_known(options, RerankOptions)
    return rerank_service_pb2.RerankRequest(
        model=valid_text("model", model),
        query=valid_text("query", query),
        documents=documents,
        options=_rerank_options(**options),
    )


def _rerank_options(
    **options: Unpack[RerankOptions],
) -> rerank_service_pb2.RerankOptions | None:
    """Build the options of a ranking; None if all are the defaults."""
    instruction = options.get("instruction")
    message = rerank_service_pb2.RerankOptions(
        top_n=options.get("top_n", 0),
        return_documents=options.get("return_documents", False),
        score_scale=enum_value(rerank_service_pb2.ScoreScale, options.get("score_scale")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens=options.get("max_tokens", 0),
        instruction=valid_text("instruction", instruction) if instruction else None,
    )
    return message if message.ByteSize() else None


def valid_texts(field: str, texts: Iterable[str]) -> list[str]:
    """Return a batch of texts as a list.

    Args:
        field: The name of the argument, for errors.
        texts: The texts. A str is rejected: it would be a batch of its characters.

    Raises:
        TypeError: `texts` is a str, or one of them is not.
        ValueError: A text has a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError(f"{field} is one str; give a list of texts")
    return [valid_text(f"{field}[{index}]", text) for index, text in enumerate(texts)]


def valid_text(field: str, text: str) -> str:
    """Return a text.

    Args:
        field: The name of the argument, for errors.
        text: The text.

    Raises:
        TypeError: It is not a str.
        ValueError: It has a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{field} is not a str but of type {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Without its cause, which holds the text.
            raise ValueError(f"{field} has a lone surrogate at character {error.start}") from None
    return text


def _require_known(options: Iterable[str], kind: type[EmbedOptions] | type[RerankOptions]) -> None:
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"no option {quote(name)}{suggest(name, known)}")
