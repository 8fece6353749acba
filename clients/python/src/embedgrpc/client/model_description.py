"""The description of a served model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.client.enums import enum_name
from embedgrpc.client.server_description import Limits, decode_limits
from embedgrpc.v1 import classify_service_pb2, common_pb2, embedding_service_pb2
from embedgrpc.v1 import model_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the server.

    Values of enums are short lower-case names, such as "multi_vector"; "" where the server sent
    none.

    Attributes:
        id: The name in requests.
        aliases: Other names in requests.
        source: Where its files came from.
        revision: The commit of the Hub repository, or the version of the Triton model.
        fingerprint: The id of the embedding space. Never mix vectors of different ones.
        tasks: "embed", "rerank" and "classify", as far as it has them.
        representations: The representations it can return, the default first.
        encodings: The encodings it can return.
        dimensions: The length of its dense vectors.
        matryoshka_dimensions: The shorter lengths it was trained for.
        any_dimensions: Whether it can return every length up to `dimensions`.
        max_tokens: The limit of tokens in an input, special tokens included.
        max_query_tokens: The limit of tokens in a query; 0 where `max_tokens` is the limit.
        batch_tokens: The limit of tokens in a batch, padding included.
        limits: The limits of calls to this model.
        similarity: The function that compares its embeddings: "cosine", "dot", "euclidean",
            "manhattan" or "max_sim".
        rerank_method: "cross_encoder", "similarity", "late_interaction" or "hybrid"; "" where
            it cannot rerank.
        normalized: Whether dense vectors have unit length by default.
        prompts: The prompts by name.
        default_prompt_name: The prompt that applies where a call sets none; "" for none.
        default_truncation: The truncation that applies where a call sets none.
        backend: "onnx_runtime" or "triton".
        weight_type: The type of its weights, such as "float16".
        device: The device that runs it, such as "cuda:0" or "cpu".
        languages: The languages that its files name, as BCP 47 tags such as "en".
        takes_instruction: Whether `RerankOptions` may have an `instruction`.
        labels: The labels of a classifier, in the order of its logits; one for a cross-encoder.
        token_dimensions: The length of the vectors of tokens; 0 if the model returns none.
        score_function: What turns its logits into scores by default: "raw", "softmax" or
            "sigmoid"; "" where it does not classify.
        state: "loading" or "ready"; "failed" for good, or "unavailable" for now.
    """

    id: str
    aliases: Sequence[str]
    source: str
    revision: str
    fingerprint: str
    tasks: Sequence[str]
    representations: Sequence[str]
    encodings: Sequence[str]
    dimensions: int
    matryoshka_dimensions: Sequence[int]
    any_dimensions: bool
    max_tokens: int
    max_query_tokens: int
    batch_tokens: int
    limits: Limits
    similarity: str
    rerank_method: str
    normalized: bool
    prompts: Mapping[str, str]
    default_prompt_name: str
    default_truncation: str
    backend: str
    weight_type: str
    device: str
    languages: Sequence[str]
    takes_instruction: bool
    labels: Sequence[str]
    score_function: str
    token_dimensions: int
    state: str


def decode_model(message: pb.Model) -> Model:
    """Decode the description of a model."""
    return Model(
        id=message.id,
        aliases=tuple(message.aliases),
        source=message.source,
        revision=message.revision,
        fingerprint=message.fingerprint,
        tasks=tuple(enum_name(pb.ModelTask, task) for task in message.tasks),
        representations=tuple(
            enum_name(embedding_service_pb2.Representation, representation)
            for representation in message.representations
        ),
        encodings=tuple(
            enum_name(embedding_service_pb2.VectorEncoding, encoding)
            for encoding in message.encodings
        ),
        dimensions=message.dimensions,
        matryoshka_dimensions=tuple(message.matryoshka_dimensions),
        any_dimensions=message.any_dimensions,
        max_tokens=message.max_tokens,
        max_query_tokens=message.max_query_tokens,
        batch_tokens=message.batch_tokens,
        limits=decode_limits(message.limits),
        similarity=enum_name(pb.ModelSimilarity, message.similarity),
        rerank_method=enum_name(pb.RerankMethod, message.rerank_method),
        normalized=message.normalized,
        prompts=dict(message.prompts),
        default_prompt_name=message.default_prompt_name,
        default_truncation=enum_name(common_pb2.Truncation, message.default_truncation),
        backend=enum_name(pb.ModelBackend, message.backend),
        weight_type=message.weight_type,
        device=message.device,
        languages=tuple(message.languages),
        takes_instruction=message.takes_instruction,
        labels=tuple(message.labels),
        token_dimensions=message.token_dimensions,
        score_function=enum_name(classify_service_pb2.ScoreFunction, message.score_function),
        state=enum_name(pb.ModelState, message.state),
    )
