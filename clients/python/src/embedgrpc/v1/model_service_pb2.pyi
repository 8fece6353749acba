import datetime

from embedgrpc.v1 import classify_service_pb2 as _classify_service_pb2
from embedgrpc.v1 import common_pb2 as _common_pb2
from embedgrpc.v1 import embedding_service_pb2 as _embedding_service_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelTask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_TASK_UNSPECIFIED: _ClassVar[ModelTask]
    MODEL_TASK_EMBED: _ClassVar[ModelTask]
    MODEL_TASK_RERANK: _ClassVar[ModelTask]
    MODEL_TASK_CLASSIFY: _ClassVar[ModelTask]

class ModelSimilarity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_SIMILARITY_UNSPECIFIED: _ClassVar[ModelSimilarity]
    MODEL_SIMILARITY_COSINE: _ClassVar[ModelSimilarity]
    MODEL_SIMILARITY_DOT: _ClassVar[ModelSimilarity]
    MODEL_SIMILARITY_EUCLIDEAN: _ClassVar[ModelSimilarity]
    MODEL_SIMILARITY_MANHATTAN: _ClassVar[ModelSimilarity]
    MODEL_SIMILARITY_MAX_SIM: _ClassVar[ModelSimilarity]

class RerankMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RERANK_METHOD_UNSPECIFIED: _ClassVar[RerankMethod]
    RERANK_METHOD_CROSS_ENCODER: _ClassVar[RerankMethod]
    RERANK_METHOD_SIMILARITY: _ClassVar[RerankMethod]
    RERANK_METHOD_LATE_INTERACTION: _ClassVar[RerankMethod]
    RERANK_METHOD_HYBRID: _ClassVar[RerankMethod]

class ModelBackend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_BACKEND_UNSPECIFIED: _ClassVar[ModelBackend]
    MODEL_BACKEND_ONNX_RUNTIME: _ClassVar[ModelBackend]
    MODEL_BACKEND_TRITON: _ClassVar[ModelBackend]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_UNAVAILABLE: _ClassVar[ModelState]
MODEL_TASK_UNSPECIFIED: ModelTask
MODEL_TASK_EMBED: ModelTask
MODEL_TASK_RERANK: ModelTask
MODEL_TASK_CLASSIFY: ModelTask
MODEL_SIMILARITY_UNSPECIFIED: ModelSimilarity
MODEL_SIMILARITY_COSINE: ModelSimilarity
MODEL_SIMILARITY_DOT: ModelSimilarity
MODEL_SIMILARITY_EUCLIDEAN: ModelSimilarity
MODEL_SIMILARITY_MANHATTAN: ModelSimilarity
MODEL_SIMILARITY_MAX_SIM: ModelSimilarity
RERANK_METHOD_UNSPECIFIED: RerankMethod
RERANK_METHOD_CROSS_ENCODER: RerankMethod
RERANK_METHOD_SIMILARITY: RerankMethod
RERANK_METHOD_LATE_INTERACTION: RerankMethod
RERANK_METHOD_HYBRID: RerankMethod
MODEL_BACKEND_UNSPECIFIED: ModelBackend
MODEL_BACKEND_ONNX_RUNTIME: ModelBackend
MODEL_BACKEND_TRITON: ModelBackend
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_UNAVAILABLE: ModelState

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "task")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    task: ModelTask
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., task: _Optional[_Union[ModelTask, str]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class GetServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerResponse(_message.Message):
    __slots__ = ("server",)
    SERVER_FIELD_NUMBER: _ClassVar[int]
    server: Server
    def __init__(self, server: _Optional[_Union[Server, _Mapping]] = ...) -> None: ...

class Server(_message.Message):
    __slots__ = ("version", "contract_version", "default_model", "start_time", "uptime", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    contract_version: str
    default_model: str
    start_time: _timestamp_pb2.Timestamp
    uptime: _duration_pb2.Duration
    limits: _common_pb2.Limits
    def __init__(self, version: _Optional[str] = ..., contract_version: _Optional[str] = ..., default_model: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., limits: _Optional[_Union[_common_pb2.Limits, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "aliases", "source", "revision", "fingerprint", "tasks", "representations", "encodings", "dimensions", "matryoshka_dimensions", "any_dimensions", "max_tokens", "limits", "similarity", "rerank_method", "normalized", "prompts", "default_prompt_name", "default_truncation", "backend", "weight_type", "device", "state", "batch_tokens", "max_query_tokens", "languages", "takes_instruction", "labels", "score_function", "token_dimensions")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    REPRESENTATIONS_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MATRYOSHKA_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ANY_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    RERANK_METHOD_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    TAKES_INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    source: str
    revision: str
    fingerprint: str
    tasks: _containers.RepeatedScalarFieldContainer[ModelTask]
    representations: _containers.RepeatedScalarFieldContainer[_embedding_service_pb2.Representation]
    encodings: _containers.RepeatedScalarFieldContainer[_embedding_service_pb2.VectorEncoding]
    dimensions: int
    matryoshka_dimensions: _containers.RepeatedScalarFieldContainer[int]
    any_dimensions: bool
    max_tokens: int
    limits: _common_pb2.Limits
    similarity: ModelSimilarity
    rerank_method: RerankMethod
    normalized: bool
    prompts: _containers.ScalarMap[str, str]
    default_prompt_name: str
    default_truncation: _common_pb2.Truncation
    backend: ModelBackend
    weight_type: str
    device: str
    state: ModelState
    batch_tokens: int
    max_query_tokens: int
    languages: _containers.RepeatedScalarFieldContainer[str]
    takes_instruction: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    score_function: _classify_service_pb2.ScoreFunction
    token_dimensions: int
    def __init__(self, id: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[ModelTask, str]]] = ..., representations: _Optional[_Iterable[_Union[_embedding_service_pb2.Representation, str]]] = ..., encodings: _Optional[_Iterable[_Union[_embedding_service_pb2.VectorEncoding, str]]] = ..., dimensions: _Optional[int] = ..., matryoshka_dimensions: _Optional[_Iterable[int]] = ..., any_dimensions: _Optional[bool] = ..., max_tokens: _Optional[int] = ..., limits: _Optional[_Union[_common_pb2.Limits, _Mapping]] = ..., similarity: _Optional[_Union[ModelSimilarity, str]] = ..., rerank_method: _Optional[_Union[RerankMethod, str]] = ..., normalized: _Optional[bool] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt_name: _Optional[str] = ..., default_truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., backend: _Optional[_Union[ModelBackend, str]] = ..., weight_type: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., batch_tokens: _Optional[int] = ..., max_query_tokens: _Optional[int] = ..., languages: _Optional[_Iterable[str]] = ..., takes_instruction: _Optional[bool] = ..., labels: _Optional[_Iterable[str]] = ..., score_function: _Optional[_Union[_classify_service_pb2.ScoreFunction, str]] = ..., token_dimensions: _Optional[int] = ...) -> None: ...
