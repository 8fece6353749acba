"""The keyword options of the calls, and the messages they become."""

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
from embedgrpc.v1 import common_pb2, rerank_service_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb


class EmbedOptions(TypedDict, total=False):
    """Keyword options of `embed` and `embed_stream`; each may be left out.

    At most one of `input_type`, `prompt_name` and `prompt_text` may be set.

    Attributes:
        input_type: The role of the texts; the server maps it to the model's prompt.
        prompt_name: A key of `Model.prompts`.
        prompt_text: The prefix itself; "" for none.
        dimensions: Length of the dense vectors; 0, the default, means the model's.
        normalize: Whether dense vectors get unit length; None, the default, means the
            model's own way.
        encoding: How numbers travel; "float32" unless set.
        truncation: What to do with texts that are too long; the server's default unless set.
        max_tokens: Cut, or refuse, beyond this many tokens; 0, the default, means the model's
            limit.
        representations: What to return; empty, the default, means the model's first.
        max_sparse_terms: Keep only this many of the heaviest sparse terms; 0, the default,
            keeps all.
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
    """Keyword options of `rerank`; each may be left out.

    Attributes:
        top_n: Return at most this many documents; 0, the default, returns all.
        return_documents: Whether to return the documents with their scores; False unless set.
        score_scale: The scale of the scores; the model's own unless set.
        truncation: What to do when query and document are too long together; the server's
            default unless set.
        max_tokens_per_document: Cut, or refuse, documents beyond this many tokens; 0, the
            default, means the model's limit.
        instruction: For models that take one; "" unless set.
    """

    top_n: int
    return_documents: bool
    score_scale: ScoreScale | None
    truncation: Truncation | None
    max_tokens_per_document: int
    instruction: str


def embed_options(**options: Unpack[EmbedOptions]) -> pb.EmbedOptions:
    """Builds the options of an embedding request.

    Args:
        options: As the caller gave them.

    Returns:
        The message.

    Raises:
        TypeError: An option has another name or type than those of `EmbedOptions`.
        ValueError: A name is none of the enum's, or more than one prompt is set.
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
    """Builds the request of Rerank.

    Args:
        query: What the documents are compared with.
        documents: The documents, checked before.
        model: Id of the model; "" for the server's default.
        options: As the caller gave them.

    Returns:
        The message.

    Raises:
        TypeError: An option has another name or type than those of `RerankOptions`, or a text
            is not a str.
        ValueError: A name is none of the enum's, or a text is not valid Unicode.
    """
    _require_known(options, RerankOptions)
    return rerank_service_pb2.RerankRequest(
        model=valid_text("model", model),
        query=valid_text("query", query),
        documents=documents,
        top_n=options.get("top_n", 0),
        return_documents=options.get("return_documents", False),
        score_scale=enum_value(rerank_service_pb2.ScoreScale, options.get("score_scale")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens_per_document=options.get("max_tokens_per_document", 0),
        instruction=valid_text("instruction", options.get("instruction", "")),
    )


def valid_texts(field: str, texts: Iterable[str]) -> list[str]:
    """Checks a batch of texts before anything is sent.

    Args:
        field: The argument to name when a text is wrong.
        texts: The texts; one str is refused, since it would count as a batch of characters.

    Returns:
        The texts.

    Raises:
        TypeError: `texts` is one str, or holds something else than str.
        ValueError: A text holds a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError(f"{field} is one str; give a list of them")
    return [valid_text(f"{field}[{index}]", text) for index, text in enumerate(texts)]


def valid_text(field: str, text: str) -> str:
    """Checks a text before anything is sent.

    Args:
        field: The argument to name when the text is wrong.
        text: The text.

    Returns:
        The text.

    Raises:
        TypeError: It is not a str.
        ValueError: It holds a lone surrogate, which no encoding of Unicode can write.
    """
    if not isinstance(text, str):
        raise TypeError(f"{field} is not a str but of type {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Without its cause: that one holds the text.
            raise ValueError(f"{field} has a lone surrogate at character {error.start}") from None
    return text


def _require_known(options: Iterable[str], kind: type[EmbedOptions] | type[RerankOptions]) -> None:
    unknown = sorted(set(options) - kind.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected options: {', '.join(unknown)}")
