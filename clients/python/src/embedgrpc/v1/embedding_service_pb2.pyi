from embedgrpc.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Representation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPRESENTATION_UNSPECIFIED: _ClassVar[Representation]
    REPRESENTATION_DENSE: _ClassVar[Representation]
    REPRESENTATION_SPARSE: _ClassVar[Representation]
    REPRESENTATION_MULTI_VECTOR: _ClassVar[Representation]

class VectorEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_ENCODING_UNSPECIFIED: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_FLOAT32: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_FLOAT16: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_BFLOAT16: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_INT8: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_UBINARY: _ClassVar[VectorEncoding]

class ResultOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_ORDER_UNSPECIFIED: _ClassVar[ResultOrder]
    RESULT_ORDER_INPUT: _ClassVar[ResultOrder]
    RESULT_ORDER_COMPLETION: _ClassVar[ResultOrder]
REPRESENTATION_UNSPECIFIED: Representation
REPRESENTATION_DENSE: Representation
REPRESENTATION_SPARSE: Representation
REPRESENTATION_MULTI_VECTOR: Representation
VECTOR_ENCODING_UNSPECIFIED: VectorEncoding
VECTOR_ENCODING_FLOAT32: VectorEncoding
VECTOR_ENCODING_FLOAT16: VectorEncoding
VECTOR_ENCODING_BFLOAT16: VectorEncoding
VECTOR_ENCODING_INT8: VectorEncoding
VECTOR_ENCODING_UBINARY: VectorEncoding
RESULT_ORDER_UNSPECIFIED: ResultOrder
RESULT_ORDER_INPUT: ResultOrder
RESULT_ORDER_COMPLETION: ResultOrder

class EmbedOptions(_message.Message):
    __slots__ = ("representations", "input_type", "prompt_name", "prompt_text", "dimensions", "normalize", "encoding", "truncation", "max_tokens", "max_sparse_terms", "priority", "token_vectors", "chunking")
    REPRESENTATIONS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SPARSE_TERMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_VECTORS_FIELD_NUMBER: _ClassVar[int]
    CHUNKING_FIELD_NUMBER: _ClassVar[int]
    representations: _containers.RepeatedScalarFieldContainer[Representation]
    input_type: _common_pb2.InputType
    prompt_name: str
    prompt_text: str
    dimensions: int
    normalize: bool
    encoding: VectorEncoding
    truncation: _common_pb2.Truncation
    max_tokens: int
    max_sparse_terms: int
    priority: _common_pb2.Priority
    token_vectors: bool
    chunking: Chunking
    def __init__(self, representations: _Optional[_Iterable[_Union[Representation, str]]] = ..., input_type: _Optional[_Union[_common_pb2.InputType, str]] = ..., prompt_name: _Optional[str] = ..., prompt_text: _Optional[str] = ..., dimensions: _Optional[int] = ..., normalize: _Optional[bool] = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., max_tokens: _Optional[int] = ..., max_sparse_terms: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., token_vectors: _Optional[bool] = ..., chunking: _Optional[_Union[Chunking, _Mapping]] = ...) -> None: ...

class Chunking(_message.Message):
    __slots__ = ("tokens", "sentences", "spans")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SENTENCES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    tokens: ChunkByTokens
    sentences: ChunkBySentences
    spans: ChunkBySpans
    def __init__(self, tokens: _Optional[_Union[ChunkByTokens, _Mapping]] = ..., sentences: _Optional[_Union[ChunkBySentences, _Mapping]] = ..., spans: _Optional[_Union[ChunkBySpans, _Mapping]] = ...) -> None: ...

class ChunkByTokens(_message.Message):
    __slots__ = ("size", "overlap")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    size: int
    overlap: int
    def __init__(self, size: _Optional[int] = ..., overlap: _Optional[int] = ...) -> None: ...

class ChunkBySentences(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ChunkBySpans(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[TextSpans]
    def __init__(self, texts: _Optional[_Iterable[_Union[TextSpans, _Mapping]]] = ...) -> None: ...

class TextSpans(_message.Message):
    __slots__ = ("character_starts", "character_ends")
    CHARACTER_STARTS_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_ENDS_FIELD_NUMBER: _ClassVar[int]
    character_starts: _containers.RepeatedScalarFieldContainer[int]
    character_ends: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, character_starts: _Optional[_Iterable[int]] = ..., character_ends: _Optional[_Iterable[int]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("model", "texts", "options", "allow_partial", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    options: EmbedOptions
    allow_partial: bool
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[EmbedOptions, _Mapping]] = ..., allow_partial: _Optional[bool] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embeddings", "model", "revision", "fingerprint", "usage")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    model: str
    revision: str
    fingerprint: str
    usage: _common_pb2.Usage
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("dense", "sparse", "multi_vector", "token_count", "truncated", "error", "token_vectors", "chunks")
    DENSE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    MULTI_VECTOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_VECTORS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    dense: DenseVector
    sparse: SparseVector
    multi_vector: MultiVector
    token_count: int
    truncated: bool
    error: _common_pb2.ItemError
    token_vectors: TokenVectors
    chunks: ChunkVectors
    def __init__(self, dense: _Optional[_Union[DenseVector, _Mapping]] = ..., sparse: _Optional[_Union[SparseVector, _Mapping]] = ..., multi_vector: _Optional[_Union[MultiVector, _Mapping]] = ..., token_count: _Optional[int] = ..., truncated: _Optional[bool] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ..., token_vectors: _Optional[_Union[TokenVectors, _Mapping]] = ..., chunks: _Optional[_Union[ChunkVectors, _Mapping]] = ...) -> None: ...

class ChunkVectors(_message.Message):
    __slots__ = ("vectors", "character_starts", "character_ends", "byte_starts", "byte_ends", "token_counts")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_STARTS_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_ENDS_FIELD_NUMBER: _ClassVar[int]
    BYTE_STARTS_FIELD_NUMBER: _ClassVar[int]
    BYTE_ENDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    vectors: MultiVector
    character_starts: _containers.RepeatedScalarFieldContainer[int]
    character_ends: _containers.RepeatedScalarFieldContainer[int]
    byte_starts: _containers.RepeatedScalarFieldContainer[int]
    byte_ends: _containers.RepeatedScalarFieldContainer[int]
    token_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, vectors: _Optional[_Union[MultiVector, _Mapping]] = ..., character_starts: _Optional[_Iterable[int]] = ..., character_ends: _Optional[_Iterable[int]] = ..., byte_starts: _Optional[_Iterable[int]] = ..., byte_ends: _Optional[_Iterable[int]] = ..., token_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenVectors(_message.Message):
    __slots__ = ("vectors", "ids", "character_starts", "character_ends", "byte_starts", "byte_ends", "special", "of_prompt")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_STARTS_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_ENDS_FIELD_NUMBER: _ClassVar[int]
    BYTE_STARTS_FIELD_NUMBER: _ClassVar[int]
    BYTE_ENDS_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    OF_PROMPT_FIELD_NUMBER: _ClassVar[int]
    vectors: MultiVector
    ids: _containers.RepeatedScalarFieldContainer[int]
    character_starts: _containers.RepeatedScalarFieldContainer[int]
    character_ends: _containers.RepeatedScalarFieldContainer[int]
    byte_starts: _containers.RepeatedScalarFieldContainer[int]
    byte_ends: _containers.RepeatedScalarFieldContainer[int]
    special: _containers.RepeatedScalarFieldContainer[bool]
    of_prompt: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, vectors: _Optional[_Union[MultiVector, _Mapping]] = ..., ids: _Optional[_Iterable[int]] = ..., character_starts: _Optional[_Iterable[int]] = ..., character_ends: _Optional[_Iterable[int]] = ..., byte_starts: _Optional[_Iterable[int]] = ..., byte_ends: _Optional[_Iterable[int]] = ..., special: _Optional[_Iterable[bool]] = ..., of_prompt: _Optional[_Iterable[bool]] = ...) -> None: ...

class DenseVector(_message.Message):
    __slots__ = ("values", "data", "encoding", "dimensions", "scale")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    data: bytes
    encoding: VectorEncoding
    dimensions: int
    scale: float
    def __init__(self, values: _Optional[_Iterable[float]] = ..., data: _Optional[bytes] = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., dimensions: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class SparseVector(_message.Message):
    __slots__ = ("indices", "values", "dimensions")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    dimensions: int
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., dimensions: _Optional[int] = ...) -> None: ...

class MultiVector(_message.Message):
    __slots__ = ("values", "data", "encoding", "dimensions", "row_count", "scales")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    data: bytes
    encoding: VectorEncoding
    dimensions: int
    row_count: int
    scales: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ..., data: _Optional[bytes] = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., dimensions: _Optional[int] = ..., row_count: _Optional[int] = ..., scales: _Optional[_Iterable[float]] = ...) -> None: ...

class StreamEmbedRequest(_message.Message):
    __slots__ = ("setup", "batch")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    setup: StreamEmbedSetup
    batch: StreamEmbedBatch
    def __init__(self, setup: _Optional[_Union[StreamEmbedSetup, _Mapping]] = ..., batch: _Optional[_Union[StreamEmbedBatch, _Mapping]] = ...) -> None: ...

class StreamEmbedSetup(_message.Message):
    __slots__ = ("model", "options", "order", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: EmbedOptions
    order: ResultOrder
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[EmbedOptions, _Mapping]] = ..., order: _Optional[_Union[ResultOrder, str]] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class StreamEmbedBatch(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[StreamEmbedInput]
    def __init__(self, inputs: _Optional[_Iterable[_Union[StreamEmbedInput, _Mapping]]] = ...) -> None: ...

class StreamEmbedInput(_message.Message):
    __slots__ = ("id", "text", "spans")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    spans: TextSpans
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., spans: _Optional[_Union[TextSpans, _Mapping]] = ...) -> None: ...

class StreamEmbedResponse(_message.Message):
    __slots__ = ("ready", "results")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ready: StreamEmbedReady
    results: StreamEmbedResults
    def __init__(self, ready: _Optional[_Union[StreamEmbedReady, _Mapping]] = ..., results: _Optional[_Union[StreamEmbedResults, _Mapping]] = ...) -> None: ...

class StreamEmbedReady(_message.Message):
    __slots__ = ("model", "revision", "fingerprint", "dimensions", "max_in_flight_inputs", "max_batch_inputs", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_INPUTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    fingerprint: str
    dimensions: int
    max_in_flight_inputs: int
    max_batch_inputs: int
    limits: _common_pb2.Limits
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., dimensions: _Optional[int] = ..., max_in_flight_inputs: _Optional[int] = ..., max_batch_inputs: _Optional[int] = ..., limits: _Optional[_Union[_common_pb2.Limits, _Mapping]] = ...) -> None: ...

class StreamEmbedResults(_message.Message):
    __slots__ = ("results", "usage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[StreamEmbedResult]
    usage: _common_pb2.Usage
    def __init__(self, results: _Optional[_Iterable[_Union[StreamEmbedResult, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class StreamEmbedResult(_message.Message):
    __slots__ = ("id", "embedding", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    embedding: Embedding
    error: _common_pb2.ItemError
    def __init__(self, id: _Optional[str] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ...) -> None: ...
