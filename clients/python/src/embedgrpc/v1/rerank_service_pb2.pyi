from embedgrpc.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreScale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_SCALE_UNSPECIFIED: _ClassVar[ScoreScale]
    SCORE_SCALE_RAW: _ClassVar[ScoreScale]
    SCORE_SCALE_SIGMOID: _ClassVar[ScoreScale]
SCORE_SCALE_UNSPECIFIED: ScoreScale
SCORE_SCALE_RAW: ScoreScale
SCORE_SCALE_SIGMOID: ScoreScale

class RerankOptions(_message.Message):
    __slots__ = ("top_n", "return_documents", "score_scale", "truncation", "max_tokens", "query_input_type", "query_prompt_name", "query_prompt_text", "instruction", "document_input_type", "document_prompt_name", "document_prompt_text", "priority")
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_SCALE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUERY_INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    top_n: int
    return_documents: bool
    score_scale: ScoreScale
    truncation: _common_pb2.Truncation
    max_tokens: int
    query_input_type: _common_pb2.InputType
    query_prompt_name: str
    query_prompt_text: str
    instruction: str
    document_input_type: _common_pb2.InputType
    document_prompt_name: str
    document_prompt_text: str
    priority: _common_pb2.Priority
    def __init__(self, top_n: _Optional[int] = ..., return_documents: _Optional[bool] = ..., score_scale: _Optional[_Union[ScoreScale, str]] = ..., truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., max_tokens: _Optional[int] = ..., query_input_type: _Optional[_Union[_common_pb2.InputType, str]] = ..., query_prompt_name: _Optional[str] = ..., query_prompt_text: _Optional[str] = ..., instruction: _Optional[str] = ..., document_input_type: _Optional[_Union[_common_pb2.InputType, str]] = ..., document_prompt_name: _Optional[str] = ..., document_prompt_text: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "options", "allow_partial", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    options: RerankOptions
    allow_partial: bool
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[RerankOptions, _Mapping]] = ..., allow_partial: _Optional[bool] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("results", "failures", "usage", "model", "revision", "fingerprint")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RankedDocument]
    failures: _containers.RepeatedCompositeFieldContainer[FailedDocument]
    usage: _common_pb2.Usage
    model: str
    revision: str
    fingerprint: str
    def __init__(self, results: _Optional[_Iterable[_Union[RankedDocument, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[FailedDocument, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class RankedDocument(_message.Message):
    __slots__ = ("index", "score", "document", "truncated")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    document: str
    truncated: bool
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ..., document: _Optional[str] = ..., truncated: _Optional[bool] = ...) -> None: ...

class FailedDocument(_message.Message):
    __slots__ = ("index", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    error: _common_pb2.ItemError
    def __init__(self, index: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ...) -> None: ...

class StreamRerankRequest(_message.Message):
    __slots__ = ("setup", "part")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    setup: StreamRerankSetup
    part: StreamRerankPart
    def __init__(self, setup: _Optional[_Union[StreamRerankSetup, _Mapping]] = ..., part: _Optional[_Union[StreamRerankPart, _Mapping]] = ...) -> None: ...

class StreamRerankSetup(_message.Message):
    __slots__ = ("model", "options", "allow_partial", "max_response_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: RerankOptions
    allow_partial: bool
    max_response_bytes: int
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[RerankOptions, _Mapping]] = ..., allow_partial: _Optional[bool] = ..., max_response_bytes: _Optional[int] = ...) -> None: ...

class StreamRerankPart(_message.Message):
    __slots__ = ("id", "query", "documents", "more")
    ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    id: str
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    def __init__(self, id: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., more: _Optional[bool] = ...) -> None: ...

class StreamRerankResponse(_message.Message):
    __slots__ = ("ready", "result")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ready: StreamRerankReady
    result: StreamRerankResult
    def __init__(self, ready: _Optional[_Union[StreamRerankReady, _Mapping]] = ..., result: _Optional[_Union[StreamRerankResult, _Mapping]] = ...) -> None: ...

class StreamRerankReady(_message.Message):
    __slots__ = ("model", "revision", "fingerprint", "max_in_flight_inputs", "max_part_inputs", "max_query_inputs", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PART_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUERY_INPUTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    fingerprint: str
    max_in_flight_inputs: int
    max_part_inputs: int
    max_query_inputs: int
    limits: _common_pb2.Limits
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., max_in_flight_inputs: _Optional[int] = ..., max_part_inputs: _Optional[int] = ..., max_query_inputs: _Optional[int] = ..., limits: _Optional[_Union[_common_pb2.Limits, _Mapping]] = ...) -> None: ...

class StreamRerankResult(_message.Message):
    __slots__ = ("id", "ranking", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    ranking: Ranking
    error: _common_pb2.ItemError
    def __init__(self, id: _Optional[str] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.ItemError, _Mapping]] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("results", "failures", "usage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RankedDocument]
    failures: _containers.RepeatedCompositeFieldContainer[FailedDocument]
    usage: _common_pb2.Usage
    def __init__(self, results: _Optional[_Iterable[_Union[RankedDocument, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[FailedDocument, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...
