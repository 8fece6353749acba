import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_INPUT_TOO_LONG: _ClassVar[ErrorReason]
    ERROR_REASON_EMPTY_INPUT: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_UNSUPPORTED: _ClassVar[ErrorReason]
    ERROR_REASON_OVERLOADED: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_EXPIRED: _ClassVar[ErrorReason]
    ERROR_REASON_BACKEND_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_BACKEND_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_NON_FINITE_OUTPUT: _ClassVar[ErrorReason]
    ERROR_REASON_UNAUTHENTICATED: _ClassVar[ErrorReason]
    ERROR_REASON_PERMISSION_DENIED: _ClassVar[ErrorReason]
    ERROR_REASON_RATE_LIMITED: _ClassVar[ErrorReason]
    ERROR_REASON_SHUTTING_DOWN: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]

class ErrorLabel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_LABEL_UNSPECIFIED: _ClassVar[ErrorLabel]
    ERROR_LABEL_MALFORMED_MESSAGE: _ClassVar[ErrorLabel]
    ERROR_LABEL_NO_MESSAGE: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOO_MANY_FIELDS: _ClassVar[ErrorLabel]
    ERROR_LABEL_OUT_OF_ORDER: _ClassVar[ErrorLabel]
    ERROR_LABEL_NO_INPUTS: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOO_MANY_INPUTS: _ClassVar[ErrorLabel]
    ERROR_LABEL_UNKNOWN_ENUM_VALUE: _ClassVar[ErrorLabel]
    ERROR_LABEL_DUPLICATE_ID: _ClassVar[ErrorLabel]
    ERROR_LABEL_RESPONSE_TOO_LARGE: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOKENS: _ClassVar[ErrorLabel]
    ERROR_LABEL_CHARACTERS: _ClassVar[ErrorLabel]
    ERROR_LABEL_MESSAGE_TOO_LARGE: _ClassVar[ErrorLabel]
    ERROR_LABEL_WRONG_TASK: _ClassVar[ErrorLabel]
    ERROR_LABEL_QUEUE_FULL: _ClassVar[ErrorLabel]
    ERROR_LABEL_DEADLINE_UNREACHABLE: _ClassVar[ErrorLabel]
    ERROR_LABEL_STANDING_QUEUE: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOO_MANY_CALLS: _ClassVar[ErrorLabel]
    ERROR_LABEL_NO_ROOM_TO_RECEIVE: _ClassVar[ErrorLabel]
    ERROR_LABEL_NO_ROOM_FOR_ANSWER: _ClassVar[ErrorLabel]
    ERROR_LABEL_STREAM_GAVE_WAY: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOO_MANY_VECTORS: _ClassVar[ErrorLabel]
    ERROR_LABEL_STREAM_IDLE: _ClassVar[ErrorLabel]
    ERROR_LABEL_CLIENT_TOO_SLOW: _ClassVar[ErrorLabel]
    ERROR_LABEL_MESSAGE_TOO_SLOW: _ClassVar[ErrorLabel]
    ERROR_LABEL_STOPPING: _ClassVar[ErrorLabel]
    ERROR_LABEL_MAX_AGE: _ClassVar[ErrorLabel]
    ERROR_LABEL_SERVICE_DENIED: _ClassVar[ErrorLabel]
    ERROR_LABEL_MODEL_DENIED: _ClassVar[ErrorLabel]
    ERROR_LABEL_SCOPE_MISSING: _ClassVar[ErrorLabel]
    ERROR_LABEL_NO_CREDENTIALS: _ClassVar[ErrorLabel]
    ERROR_LABEL_INVALID_CREDENTIALS: _ClassVar[ErrorLabel]
    ERROR_LABEL_EXPIRED_CREDENTIALS: _ClassVar[ErrorLabel]
    ERROR_LABEL_REQUESTS_PER_SECOND: _ClassVar[ErrorLabel]
    ERROR_LABEL_TOKENS_PER_MINUTE: _ClassVar[ErrorLabel]
    ERROR_LABEL_CONCURRENT_CALLS: _ClassVar[ErrorLabel]
    ERROR_LABEL_MODEL_CLOSED: _ClassVar[ErrorLabel]
    ERROR_LABEL_MODEL_NOT_CHANGED: _ClassVar[ErrorLabel]

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_NONE: _ClassVar[Truncation]
    TRUNCATION_END: _ClassVar[Truncation]
    TRUNCATION_START: _ClassVar[Truncation]

class InputType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_TYPE_UNSPECIFIED: _ClassVar[InputType]
    INPUT_TYPE_QUERY: _ClassVar[InputType]
    INPUT_TYPE_DOCUMENT: _ClassVar[InputType]
    INPUT_TYPE_CLASSIFICATION: _ClassVar[InputType]
    INPUT_TYPE_CLUSTERING: _ClassVar[InputType]
    INPUT_TYPE_SIMILARITY: _ClassVar[InputType]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_INVALID_REQUEST: ErrorReason
ERROR_REASON_INPUT_TOO_LONG: ErrorReason
ERROR_REASON_EMPTY_INPUT: ErrorReason
ERROR_REASON_MODEL_NOT_FOUND: ErrorReason
ERROR_REASON_UNSUPPORTED: ErrorReason
ERROR_REASON_OVERLOADED: ErrorReason
ERROR_REASON_DEADLINE_EXPIRED: ErrorReason
ERROR_REASON_BACKEND_UNAVAILABLE: ErrorReason
ERROR_REASON_BACKEND_FAILED: ErrorReason
ERROR_REASON_NON_FINITE_OUTPUT: ErrorReason
ERROR_REASON_UNAUTHENTICATED: ErrorReason
ERROR_REASON_PERMISSION_DENIED: ErrorReason
ERROR_REASON_RATE_LIMITED: ErrorReason
ERROR_REASON_SHUTTING_DOWN: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
ERROR_LABEL_UNSPECIFIED: ErrorLabel
ERROR_LABEL_MALFORMED_MESSAGE: ErrorLabel
ERROR_LABEL_NO_MESSAGE: ErrorLabel
ERROR_LABEL_TOO_MANY_FIELDS: ErrorLabel
ERROR_LABEL_OUT_OF_ORDER: ErrorLabel
ERROR_LABEL_NO_INPUTS: ErrorLabel
ERROR_LABEL_TOO_MANY_INPUTS: ErrorLabel
ERROR_LABEL_UNKNOWN_ENUM_VALUE: ErrorLabel
ERROR_LABEL_DUPLICATE_ID: ErrorLabel
ERROR_LABEL_RESPONSE_TOO_LARGE: ErrorLabel
ERROR_LABEL_TOKENS: ErrorLabel
ERROR_LABEL_CHARACTERS: ErrorLabel
ERROR_LABEL_MESSAGE_TOO_LARGE: ErrorLabel
ERROR_LABEL_WRONG_TASK: ErrorLabel
ERROR_LABEL_QUEUE_FULL: ErrorLabel
ERROR_LABEL_DEADLINE_UNREACHABLE: ErrorLabel
ERROR_LABEL_STANDING_QUEUE: ErrorLabel
ERROR_LABEL_TOO_MANY_CALLS: ErrorLabel
ERROR_LABEL_NO_ROOM_TO_RECEIVE: ErrorLabel
ERROR_LABEL_NO_ROOM_FOR_ANSWER: ErrorLabel
ERROR_LABEL_STREAM_GAVE_WAY: ErrorLabel
ERROR_LABEL_TOO_MANY_VECTORS: ErrorLabel
ERROR_LABEL_STREAM_IDLE: ErrorLabel
ERROR_LABEL_CLIENT_TOO_SLOW: ErrorLabel
ERROR_LABEL_MESSAGE_TOO_SLOW: ErrorLabel
ERROR_LABEL_STOPPING: ErrorLabel
ERROR_LABEL_MAX_AGE: ErrorLabel
ERROR_LABEL_SERVICE_DENIED: ErrorLabel
ERROR_LABEL_MODEL_DENIED: ErrorLabel
ERROR_LABEL_SCOPE_MISSING: ErrorLabel
ERROR_LABEL_NO_CREDENTIALS: ErrorLabel
ERROR_LABEL_INVALID_CREDENTIALS: ErrorLabel
ERROR_LABEL_EXPIRED_CREDENTIALS: ErrorLabel
ERROR_LABEL_REQUESTS_PER_SECOND: ErrorLabel
ERROR_LABEL_TOKENS_PER_MINUTE: ErrorLabel
ERROR_LABEL_CONCURRENT_CALLS: ErrorLabel
ERROR_LABEL_MODEL_CLOSED: ErrorLabel
ERROR_LABEL_MODEL_NOT_CHANGED: ErrorLabel
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_NONE: Truncation
TRUNCATION_END: Truncation
TRUNCATION_START: Truncation
INPUT_TYPE_UNSPECIFIED: InputType
INPUT_TYPE_QUERY: InputType
INPUT_TYPE_DOCUMENT: InputType
INPUT_TYPE_CLASSIFICATION: InputType
INPUT_TYPE_CLUSTERING: InputType
INPUT_TYPE_SIMILARITY: InputType
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority

class ItemError(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "retry_delay")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    retry_delay: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "truncated_inputs", "query_tokens", "document_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_INPUTS_FIELD_NUMBER: _ClassVar[int]
    QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    truncated_inputs: int
    query_tokens: int
    document_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., truncated_inputs: _Optional[int] = ..., query_tokens: _Optional[int] = ..., document_tokens: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_request_bytes", "max_response_bytes", "max_inputs", "max_text_characters", "max_prompt_characters", "max_name_characters", "max_id_characters", "max_stream_message_inputs", "max_stream_in_flight_inputs", "max_unary_duration")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_NAME_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_ID_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_MESSAGE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_IN_FLIGHT_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_UNARY_DURATION_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_response_bytes: int
    max_inputs: int
    max_text_characters: int
    max_prompt_characters: int
    max_name_characters: int
    max_id_characters: int
    max_stream_message_inputs: int
    max_stream_in_flight_inputs: int
    max_unary_duration: _duration_pb2.Duration
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_response_bytes: _Optional[int] = ..., max_inputs: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., max_prompt_characters: _Optional[int] = ..., max_name_characters: _Optional[int] = ..., max_id_characters: _Optional[int] = ..., max_stream_message_inputs: _Optional[int] = ..., max_stream_in_flight_inputs: _Optional[int] = ..., max_unary_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
