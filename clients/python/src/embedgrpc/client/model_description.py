"""The description of a model that is served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.client.enums import enum_name
from embedgrpc.v1 import common_pb2, embedding_service_pb2
from embedgrpc.v1 import model_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served.

    Names of enum values are short and lower-case, such as "multi_vector"; "" is "not told".

    Attributes:
        id: Name in requests.
        aliases: Other names for it in requests.
        source: Where its files came from.
        revision: Commit of the Hub repository, or version of the Triton model.
        fingerprint: Identifies the embedding space; vectors of different ones do not mix.
        tasks: What it is for: "embed", "rerank".
        representations: What it can return, the default first.
        encodings: Encodings it can return.
        dimensions: Length of its dense vectors.
        matryoshka_dimensions: Shorter lengths it was trained for.
        any_dimensions: Whether every length up to `dimensions` may be asked for.
        max_input_tokens: Most tokens of an input, special tokens included.
        max_inputs: Most texts, or documents, in one unary call.
        similarity: How its embeddings are compared: "cosine", "dot", "euclidean",
            "manhattan", "max_sim".
        rerank_method: "cross_encoder", "similarity", "late_interaction" or "hybrid"; "" when
            it is not for reranking.
        normalized: Whether dense vectors have unit length unless asked otherwise.
        prompts: Prompts by name.
        default_prompt_name: The prompt used when none is asked for; "" for none.
        default_truncation: What is done with long inputs when nothing is asked.
        backend: What runs it: "onnx_runtime", "triton".
        weight_type: Type of its weights, such as "float16".
        device: Where it runs, such as "cuda:0" or "cpu".
        state: "loading", "ready" or "failed".
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
    max_input_tokens: int
    max_inputs: int
    similarity: str
    rerank_method: str
    normalized: bool
    prompts: Mapping[str, str]
    default_prompt_name: str
    default_truncation: str
    backend: str
    weight_type: str
    device: str
    state: str


def decode_model(message: pb.Model) -> Model:
    """Reads the description of a model.

    Args:
        message: The description.

    Returns:
        The same, frozen, with the names of enum values.
    """
    return Model(
        id=message.id,
        aliases=tuple(message.aliases),
        source=message.source,
        revision=message.revision,
        fingerprint=message.fingerprint,
        tasks=tuple(enum_name(pb.Task, task) for task in message.tasks),
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
        max_input_tokens=message.max_input_tokens,
        max_inputs=message.max_inputs,
        similarity=enum_name(pb.Similarity, message.similarity),
        rerank_method=enum_name(pb.RerankMethod, message.rerank_method),
        normalized=message.normalized,
        prompts=dict(message.prompts),
        default_prompt_name=message.default_prompt_name,
        default_truncation=enum_name(common_pb2.Truncation, message.default_truncation),
        backend=enum_name(pb.Backend, message.backend),
        weight_type=message.weight_type,
        device=message.device,
        state=enum_name(pb.State, message.state),
    )
