from embedgrpc.v1 import common_pb2 as _common_pb2
from embedgrpc.v1 import embedding_service_pb2 as _embedding_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_EMBED: _ClassVar[Task]
    TASK_RERANK: _ClassVar[Task]

class Similarity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIMILARITY_UNSPECIFIED: _ClassVar[Similarity]
    SIMILARITY_COSINE: _ClassVar[Similarity]
    SIMILARITY_DOT: _ClassVar[Similarity]
    SIMILARITY_EUCLIDEAN: _ClassVar[Similarity]
    SIMILARITY_MANHATTAN: _ClassVar[Similarity]
    SIMILARITY_MAX_SIM: _ClassVar[Similarity]

class RerankMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RERANK_METHOD_UNSPECIFIED: _ClassVar[RerankMethod]
    RERANK_METHOD_CROSS_ENCODER: _ClassVar[RerankMethod]
    RERANK_METHOD_SIMILARITY: _ClassVar[RerankMethod]
    RERANK_METHOD_LATE_INTERACTION: _ClassVar[RerankMethod]
    RERANK_METHOD_HYBRID: _ClassVar[RerankMethod]

class Backend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_UNSPECIFIED: _ClassVar[Backend]
    BACKEND_ONNX_RUNTIME: _ClassVar[Backend]
    BACKEND_TRITON: _ClassVar[Backend]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_LOADING: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]
TASK_UNSPECIFIED: Task
TASK_EMBED: Task
TASK_RERANK: Task
SIMILARITY_UNSPECIFIED: Similarity
SIMILARITY_COSINE: Similarity
SIMILARITY_DOT: Similarity
SIMILARITY_EUCLIDEAN: Similarity
SIMILARITY_MANHATTAN: Similarity
SIMILARITY_MAX_SIM: Similarity
RERANK_METHOD_UNSPECIFIED: RerankMethod
RERANK_METHOD_CROSS_ENCODER: RerankMethod
RERANK_METHOD_SIMILARITY: RerankMethod
RERANK_METHOD_LATE_INTERACTION: RerankMethod
RERANK_METHOD_HYBRID: RerankMethod
BACKEND_UNSPECIFIED: Backend
BACKEND_ONNX_RUNTIME: Backend
BACKEND_TRITON: Backend
STATE_UNSPECIFIED: State
STATE_LOADING: State
STATE_READY: State
STATE_FAILED: State

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "task")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    task: Task
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ...) -> None: ...

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

class Model(_message.Message):
    __slots__ = ("id", "aliases", "source", "revision", "fingerprint", "tasks", "representations", "encodings", "dimensions", "matryoshka_dimensions", "any_dimensions", "max_input_tokens", "max_inputs", "similarity", "rerank_method", "normalized", "prompts", "default_prompt_name", "default_truncation", "backend", "weight_type", "device", "state", "batch_tokens")
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
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
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
    id: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    source: str
    revision: str
    fingerprint: str
    tasks: _containers.RepeatedScalarFieldContainer[Task]
    representations: _containers.RepeatedScalarFieldContainer[_embedding_service_pb2.Representation]
    encodings: _containers.RepeatedScalarFieldContainer[_embedding_service_pb2.VectorEncoding]
    dimensions: int
    matryoshka_dimensions: _containers.RepeatedScalarFieldContainer[int]
    any_dimensions: bool
    max_input_tokens: int
    max_inputs: int
    similarity: Similarity
    rerank_method: RerankMethod
    normalized: bool
    prompts: _containers.ScalarMap[str, str]
    default_prompt_name: str
    default_truncation: _common_pb2.Truncation
    backend: Backend
    weight_type: str
    device: str
    state: State
    batch_tokens: int
    def __init__(self, id: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[Task, str]]] = ..., representations: _Optional[_Iterable[_Union[_embedding_service_pb2.Representation, str]]] = ..., encodings: _Optional[_Iterable[_Union[_embedding_service_pb2.VectorEncoding, str]]] = ..., dimensions: _Optional[int] = ..., matryoshka_dimensions: _Optional[_Iterable[int]] = ..., any_dimensions: _Optional[bool] = ..., max_input_tokens: _Optional[int] = ..., max_inputs: _Optional[int] = ..., similarity: _Optional[_Union[Similarity, str]] = ..., rerank_method: _Optional[_Union[RerankMethod, str]] = ..., normalized: _Optional[bool] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt_name: _Optional[str] = ..., default_truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., backend: _Optional[_Union[Backend, str]] = ..., weight_type: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., batch_tokens: _Optional[int] = ...) -> None: ...
