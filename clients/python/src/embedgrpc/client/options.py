"""The keyword options of the calls, and the messages that carry them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

from typing_extensions import Unpack

from embedgrpc.client.enums import (
    Encoding,
    InputType,
    LabelOrder,
    Priority,
    Representation,
    ScoreFunction,
    ScoreScale,
    Truncation,
    enum_value,
)
from embedgrpc.client.inputs import Spans, valid_text
from embedgrpc.client.suggestions import quote, suggest
from embedgrpc.v1 import (
    classify_service_pb2,
    common_pb2,
    rerank_service_pb2,
    tokenizer_service_pb2,
)
from embedgrpc.v1 import embedding_service_pb2 as pb

# What methods take beside their options; for suggestions.
_ARGUMENTS: Final = ("model", "timeout_s")
_PROMPT: Final = ("input_type", "prompt_name", "prompt_text")


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
        token_vectors: Whether to return the vectors of the tokens; False by default.
        chunk_tokens: Late chunking: return a vector for every so many tokens of a text; 0
            (default) for none. Set at most one of this, `chunk_sentences` and `chunk_spans`.
        chunk_overlap: Tokens that a chunk of `chunk_tokens` shares with the one before; 0 by
            default.
        chunk_sentences: Return a vector for every so many sentences of a text.
        chunk_spans: For each text the chunks to return vectors of: where they start and end, in
            characters. For `embed`; the inputs of `embed_stream` have their own, `with_spans`.
        priority: "interactive" runs first and is refused under overload; "bulk" runs with what
            is left. By default, streams are "bulk".
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
    token_vectors: bool
    chunk_tokens: int
    chunk_overlap: int
    chunk_sentences: int
    chunk_spans: Sequence[Spans] | None
    priority: Priority | None


class RerankOptions(TypedDict, total=False):
    """Keyword options of `rerank` and `rerank_stream`, all optional.

    Set at most one prompt for the query and one for the documents. Without, the model's own
    prompts for queries and documents apply.

    Attributes:
        top_n: The limit of documents to return; 0 (default) for all.
        return_documents: Whether to return the documents with their scores; False by default.
        score_scale: The scale of the scores; the model's by default.
        truncation: Where to cut when query and document are too long together, or "none" to
            reject them; the server's setting by default.
        max_tokens: The limit of tokens in a document; 0 (default) for the model's.
        query_input_type: The role of the query.
        query_prompt_name: The prompt of the query: a key of `Model.prompts`.
        query_prompt_text: The prompt of the query itself; "" for none.
        instruction: The meaning of relevance, in words, in place of a prompt of the query; only
            where `Model.takes_instruction`.
        document_input_type: The role of the documents.
        document_prompt_name: The prompt of the documents: a key of `Model.prompts`.
        document_prompt_text: The prompt of the documents itself; "" for none.
        priority: As in `EmbedOptions`.
    """

    top_n: int
    return_documents: bool
    score_scale: ScoreScale | None
    truncation: Truncation | None
    max_tokens: int
    query_input_type: InputType | None
    query_prompt_name: str | None
    query_prompt_text: str | None
    instruction: str | None
    document_input_type: InputType | None
    document_prompt_name: str | None
    document_prompt_text: str | None
    priority: Priority | None


class ClassifyOptions(TypedDict, total=False):
    """Keyword options of `classify`, all optional.

    Attributes:
        score_function: What turns logits into scores; the model's by default.
        top_k: The limit of labels of each input, the best; 0 (default) for all.
        order: The order of the labels: "score" (default), best first, or "model".
        truncation: Where to cut inputs that are too long, or "none" to reject them; the server's
            setting by default.
        max_tokens: The limit of tokens in a text or pair; 0 (default) for the model's.
        priority: As in `EmbedOptions`.
    """

    score_function: ScoreFunction | None
    top_k: int
    order: LabelOrder | None
    truncation: Truncation | None
    max_tokens: int
    priority: Priority | None


class TokenizeOptions(TypedDict, total=False):
    """Keyword options of `tokenize` and `count_tokens`, all optional.

    Set at most one prompt; without, there is none.

    Attributes:
        input_type: The role of the texts. The server maps it to a prompt of the model.
        prompt_name: A key of `Model.prompts`.
        prompt_text: The prompt itself.
        omit_special_tokens: Whether to leave out the special tokens around a text; False by
            default.
    """

    input_type: InputType | None
    prompt_name: str | None
    prompt_text: str | None
    omit_special_tokens: bool


def embed_options(**options: Unpack[EmbedOptions]) -> pb.EmbedOptions:
    """Build the options of an embedding request.

    Raises:
        TypeError: An option is not one of `EmbedOptions`, or has the wrong type.
        ValueError: An enum has no such value, or more than one prompt or way to chunk is set.
    """
    _require_known(options, EmbedOptions)
    return pb.EmbedOptions(
        representations=[
            enum_value(pb.Representation, name) for name in options.get("representations", ())
        ],
        dimensions=options.get("dimensions", 0),
        normalize=options.get("normalize"),
        encoding=enum_value(pb.VectorEncoding, options.get("encoding", "float32")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens=options.get("max_tokens", 0),
        max_sparse_terms=options.get("max_sparse_terms", 0),
        token_vectors=options.get("token_vectors", False),
        chunking=_chunking(options),
        priority=enum_value(common_pb2.Priority, options.get("priority")),
        **_prompt(options, *_PROMPT),
    )


def _chunking(options: EmbedOptions) -> pb.Chunking | None:
    size, count = options.get("chunk_tokens", 0), options.get("chunk_sentences", 0)
    overlap, spans = options.get("chunk_overlap", 0), options.get("chunk_spans")
    if bool(size) + bool(count) + (spans is not None) > 1:
        raise ValueError("set only one of chunk_tokens, chunk_sentences and chunk_spans")
    if overlap and not size:
        raise ValueError("chunk_overlap needs chunk_tokens")
    if size:
        return pb.Chunking(tokens=pb.ChunkByTokens(size=size, overlap=overlap))
    if count:
        return pb.Chunking(sentences=pb.ChunkBySentences(count=count))
    if spans is None:
        return None
    return pb.Chunking(spans=pb.ChunkBySpans(texts=map(text_spans, spans)))


def text_spans(spans: Spans) -> pb.TextSpans:
    """Build the message of one text's spans."""
    return pb.TextSpans(
        character_starts=[start for start, _ in spans], character_ends=[end for _, end in spans]
    )


def rerank_options(**options: Unpack[RerankOptions]) -> rerank_service_pb2.RerankOptions | None:
    """Build the options of a ranking; None if all are the defaults.

    Raises:
        TypeError: An option is not one of `RerankOptions`, or has the wrong type.
        ValueError: An enum has no such value, or more than one prompt is set.
    """
    _require_known(options, RerankOptions)
    message = rerank_service_pb2.RerankOptions(
        top_n=options.get("top_n", 0),
        return_documents=options.get("return_documents", False),
        score_scale=enum_value(rerank_service_pb2.ScoreScale, options.get("score_scale")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens=options.get("max_tokens", 0),
        priority=enum_value(common_pb2.Priority, options.get("priority")),
        **_prompt(options, *(f"query_{name}" for name in _PROMPT), "instruction"),
        **_prompt(options, *(f"document_{name}" for name in _PROMPT)),
    )
    return message if message.ByteSize() else None


def classify_options(
    **options: Unpack[ClassifyOptions],
) -> classify_service_pb2.ClassifyOptions:
    """Build the options of a classification.

    Raises:
        TypeError: An option is not one of `ClassifyOptions`, or has the wrong type.
        ValueError: An enum has no such value.
    """
    _require_known(options, ClassifyOptions)
    return classify_service_pb2.ClassifyOptions(
        score_function=enum_value(
            classify_service_pb2.ScoreFunction, options.get("score_function")
        ),
        top_k=options.get("top_k", 0),
        order=enum_value(classify_service_pb2.LabelOrder, options.get("order")),
        truncation=enum_value(common_pb2.Truncation, options.get("truncation")),
        max_tokens=options.get("max_tokens", 0),
        priority=enum_value(common_pb2.Priority, options.get("priority")),
    )


def tokenize_options(
    **options: Unpack[TokenizeOptions],
) -> tokenizer_service_pb2.TokenizeOptions:
    """Build the options of tokenizing.

    Raises:
        TypeError: An option is not one of `TokenizeOptions`, or has the wrong type.
        ValueError: An enum has no such value, or more than one prompt is set.
    """
    _require_known(options, TokenizeOptions)
    return tokenizer_service_pb2.TokenizeOptions(
        omit_special_tokens=options.get("omit_special_tokens", False), **_prompt(options, *_PROMPT)
    )


def option_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of unlimited length, by name."""
    return {
        name: str(value)
        for name, value in options.items()
        if value and name.endswith(("prompt_name", "prompt_text", "instruction"))
    }


def _prompt(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the one of the named options that is set, as an argument of a message."""
    prompt = {name: options[name] for name in names if options.get(name) is not None}
    if len(prompt) > 1:
        raise ValueError(f"set only one of {', '.join(names[:-1])} and {names[-1]}")
    return {
        name: (
            enum_value(common_pb2.InputType, value)
            if name.endswith("input_type")
            else valid_text(name, value)
        )
        for name, value in prompt.items()
    }


def _require_known(options: Iterable[str], kind: type) -> None:
    known = kind.__annotations__
    for name in options:
        if name in _ARGUMENTS:
            raise TypeError(f"{name} is an argument of its own, not an option")
        if name not in known:
            raise TypeError(f"no option {quote(name)}{suggest(name, (*known, *_ARGUMENTS))}")
