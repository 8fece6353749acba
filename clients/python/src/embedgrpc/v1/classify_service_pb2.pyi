from embedgrpc.v1 import common_pb2 as _common_pb2
from embedgrpc.v1 import embedding_service_pb2 as _embedding_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreFunction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_FUNCTION_UNSPECIFIED: _ClassVar[ScoreFunction]
    SCORE_FUNCTION_RAW: _ClassVar[ScoreFunction]
    SCORE_FUNCTION_SOFTMAX: _ClassVar[ScoreFunction]
    SCORE_FUNCTION_SIGMOID: _ClassVar[ScoreFunction]

class LabelOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_ORDER_UNSPECIFIED: _ClassVar[LabelOrder]
    LABEL_ORDER_SCORE: _ClassVar[LabelOrder]
    LABEL_ORDER_MODEL: _ClassVar[LabelOrder]
SCORE_FUNCTION_UNSPECIFIED: ScoreFunction
SCORE_FUNCTION_RAW: ScoreFunction
SCORE_FUNCTION_SOFTMAX: ScoreFunction
SCORE_FUNCTION_SIGMOID: ScoreFunction
LABEL_ORDER_UNSPECIFIED: LabelOrder
LABEL_ORDER_SCORE: LabelOrder
LABEL_ORDER_MODEL: LabelOrder

class ClassifyOptions(_message.Message):
    __slots__ = ("score_function", "top_k", "order", "truncation", "max_tokens", "priority")
    SCORE_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    score_function: ScoreFunction
    top_k: int
    order: LabelOrder
    truncation: _common_pb2.Truncation
    max_tokens: int
    priority: _common_pb2.Priority
    def __init__(self, score_function: _Optional[_Union[ScoreFunction, str]] = ..., top_k: _Optional[int] = ..., order: _Optional[_Union[LabelOrder, str]] = ..., truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "texts", "pairs", "options", "allow_partial", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    pairs: _containers.RepeatedCompositeFieldContainer[TextPair]
    options: ClassifyOptions
    allow_partial: bool
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Iterable[_Union[TextPair, _Mapping]]] = ..., options: _Optional[_Union[ClassifyOptions, _Mapping]] = ..., allow_partial: _Optional[bool] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class TextPair(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: str
    second: str
    def __init__(self, first: _Optional[str] = ..., second: _Optional[str] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("classifications", "model", "revision", "fingerprint", "usage")
    CLASSIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    classifications: _containers.RepeatedCompositeFieldContainer[Classification]
    model: str
    revision: str
    fingerprint: str
    usage: _common_pb2.Usage
    def __init__(self, classifications: _Optional[_Iterable[_Union[Classification, _Mapping]]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("labels", "token_count", "truncated", "error")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[LabelScore]
    token_count: int
    truncated: bool
    error: _common_pb2.ItemError
    def __init__(self, labels: _Optional[_Iterable[_Union[LabelScore, _Mapping]]] = ..., token_count: _Optional[int] = ..., truncated: _Optional[bool] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ...) -> None: ...

class LabelScore(_message.Message):
    __slots__ = ("label", "score", "index")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    index: int
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., index: _Optional[int] = ...) -> None: ...

class StreamClassifyRequest(_message.Message):
    __slots__ = ("setup", "batch")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    setup: StreamClassifySetup
    batch: StreamClassifyBatch
    def __init__(self, setup: _Optional[_Union[StreamClassifySetup, _Mapping]] = ..., batch: _Optional[_Union[StreamClassifyBatch, _Mapping]] = ...) -> None: ...

class StreamClassifySetup(_message.Message):
    __slots__ = ("model", "options", "order", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: ClassifyOptions
    order: _embedding_service_pb2.ResultOrder
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[ClassifyOptions, _Mapping]] = ..., order: _Optional[_Union[_embedding_service_pb2.ResultOrder, str]] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class StreamClassifyBatch(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[StreamClassifyInput]
    def __init__(self, inputs: _Optional[_Iterable[_Union[StreamClassifyInput, _Mapping]]] = ...) -> None: ...

class StreamClassifyInput(_message.Message):
    __slots__ = ("id", "text", "pair")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    pair: TextPair
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., pair: _Optional[_Union[TextPair, _Mapping]] = ...) -> None: ...

class StreamClassifyResponse(_message.Message):
    __slots__ = ("ready", "results")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ready: StreamClassifyReady
    results: StreamClassifyResults
    def __init__(self, ready: _Optional[_Union[StreamClassifyReady, _Mapping]] = ..., results: _Optional[_Union[StreamClassifyResults, _Mapping]] = ...) -> None: ...

class StreamClassifyReady(_message.Message):
    __slots__ = ("model", "revision", "fingerprint", "max_in_flight_inputs", "max_batch_inputs", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_INPUTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    fingerprint: str
    max_in_flight_inputs: int
    max_batch_inputs: int
    limits: _common_pb2.Limits
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., max_in_flight_inputs: _Optional[int] = ..., max_batch_inputs: _Optional[int] = ..., limits: _Optional[_Union[_common_pb2.Limits, _Mapping]] = ...) -> None: ...

class StreamClassifyResults(_message.Message):
    __slots__ = ("results", "usage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[StreamClassifyResult]
    usage: _common_pb2.Usage
    def __init__(self, results: _Optional[_Iterable[_Union[StreamClassifyResult, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class StreamClassifyResult(_message.Message):
    __slots__ = ("id", "classification", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    classification: Classification
    error: _common_pb2.ItemError
    def __init__(self, id: _Optional[str] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ...) -> None: ...
