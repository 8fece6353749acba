"""Reads the parameters of a request. An unknown one is refused by its name."""

from collections.abc import Mapping
from typing import Any, Final

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.contract.words import read_input_type, read_truncation, read_word
from embedgrpc.v1 import (
    classify_service_pb2,
    common_pb2,
    embedding_service_pb2,
    rerank_service_pb2,
)

FIELD: Final = "parameters"
_INT32_MAX = 2**31 - 1
# More than there are.
_PARAMETERS_MAX = 64
_US_PER_S = 1e6
_PRIORITIES: Final[Mapping[int, common_pb2.Priority]] = {
    0: common_pb2.PRIORITY_UNSPECIFIED,
    # The smaller, the sooner.
    1: common_pb2.PRIORITY_INTERACTIVE,
    2: common_pb2.PRIORITY_BULK,
}
PRIORITY_LEVELS: Final = 2
_SCALES: Final[Mapping[str, rerank_service_pb2.ScoreScale]] = {
    "raw": rerank_service_pb2.SCORE_SCALE_RAW,
    "sigmoid": rerank_service_pb2.SCORE_SCALE_SIGMOID,
}
_FUNCTIONS: Final[Mapping[str, classify_service_pb2.ScoreFunction]] = {
    "raw": classify_service_pb2.SCORE_FUNCTION_RAW,
    "softmax": classify_service_pb2.SCORE_FUNCTION_SOFTMAX,
    "sigmoid": classify_service_pb2.SCORE_FUNCTION_SIGMOID,
}
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# Clients of NVIDIA NIM say it; other numbers than float32 have no place here.
_EMBEDDING_TYPES: Final[Mapping[str, embedding_service_pb2.VectorEncoding]] = {
    "float": embedding_service_pb2.VECTOR_ENCODING_FLOAT32,
    "float32": embedding_service_pb2.VECTOR_ENCODING_FLOAT32,
}
# perf_analyzer sends it with every call. It asks for a last, empty response of streams; a unary
# call has one response in any case.
_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"
_PROMPTS: Final = ("input_type", "prompt_name", "prompt_text")


class Parameters:
    """The parameters of a request, taken one after the other.

    Args:
        parameters: By name.

    Raises:
        InvalidRequestError: They are more than there can be. So do its methods, for a parameter
            that is wrong.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        if len(parameters) > _PARAMETERS_MAX:
            raise InvalidRequestError(
                f"{FIELD} has {len(parameters)} entries; the limit is {_PARAMETERS_MAX}",
                field=FIELD,
            )
        self._left = dict(parameters)

    def priority(self) -> common_pb2.Priority:
        """Take the priority."""
        level = self._whole("priority")
        if level is None:
            return common_pb2.PRIORITY_UNSPECIFIED
        if level not in _PRIORITIES:
            raise _wrong("priority", f"is {level}; models have {PRIORITY_LEVELS} levels, 1 and 2")
        return _PRIORITIES[level]

    def timeout_s(self, *, limit_s: float) -> float:
        """Take the time limit, which comes in microseconds; 0 stands for none.

        Args:
            limit_s: The server's own limit.
        """
        timeout_us = self._whole("timeout")
        if timeout_us is not None and timeout_us < 0:
            raise _wrong("timeout", f"is {timeout_us}; it must not be negative")
        return min(timeout_us / _US_PER_S, limit_s) if timeout_us else limit_s

    def embed_options(self) -> embedding_service_pb2.EmbedOptions:
        """Take how to embed, and refuse what is left."""
        options = embedding_service_pb2.EmbedOptions(
            representations=[embedding_service_pb2.REPRESENTATION_DENSE],
            truncation=self._truncation(),
            dimensions=self._int32("dimensions", at_least=1),
            max_tokens=self._int32("max_tokens"),
        )
        chosen = [name for name in _PROMPTS if name in self._left]
        if len(chosen) > 1:
            raise _wrong(chosen[1], f"and {chosen[0]} exclude each other")
        if (input_type := self._text("input_type")) is not None:
            options.input_type = read_input_type(input_type, field=_place("input_type"))
        if (name := self._text("prompt_name")) is not None:
            options.prompt_name = name
        if (prompt := self._text("prompt_text")) is not None:
            options.prompt_text = prompt
        if (normalize := self._flag("normalize")) is not None:
            options.normalize = normalize
        if (kind := self._text("embedding_type")) is not None:
            place = _place("embedding_type")
            options.encoding = read_word(kind, _EMBEDDING_TYPES, field=place)
        self._end(
            *("truncate", "dimensions", "max_tokens", *_PROMPTS, "normalize", "embedding_type")
        )
        return options

    def rank_options(self) -> rerank_service_pb2.RerankOptions:
        """Take how to score, and refuse what is left."""
        options = rerank_service_pb2.RerankOptions(
            truncation=self._truncation(), max_tokens=self._int32("max_tokens")
        )
        if (scale := self._text("score_scale")) is not None:
            options.score_scale = read_word(scale, _SCALES, field=_place("score_scale"))
        if (instruction := self._text("instruction")) is not None:
            options.instruction = instruction
        self._end("truncate", "max_tokens", "score_scale", "instruction")
        return options

    def classify_options(self) -> classify_service_pb2.ClassifyOptions:
        """Take how to classify, and refuse what is left."""
        options = classify_service_pb2.ClassifyOptions(
            truncation=self._truncation(), max_tokens=self._int32("max_tokens")
        )
        if (function := self._text("score_function")) is not None:
            place = _place("score_function")
            options.score_function = read_word(function, _FUNCTIONS, field=place)
        self._end("truncate", "max_tokens", "score_function")
        return options

    def _truncation(self) -> common_pb2.Truncation:
        value = self._take("truncate", ("string_param", "bool_param"), "a string or a bool")
        return read_truncation(value, field=_place("truncate"))

    def _int32(self, name: str, *, at_least: int = 0) -> int:
        """Take a whole number of the contract; 0 for none."""
        value = self._whole(name)
        if value is None:
            return 0
        if not at_least <= value <= _INT32_MAX:
            raise _wrong(name, f"is {value}; it must be {at_least} to {_INT32_MAX}")
        return value

    def _whole(self, name: str) -> int | None:
        value = self._take(name, ("int64_param", "uint64_param"), "a whole number")
        return None if value is None else int(value)

    def _text(self, name: str) -> str | None:
        value = self._take(name, ("string_param",), "a string")
        return None if value is None else str(value)

    def _flag(self, name: str) -> bool | None:
        value = self._take(name, ("bool_param",), "a bool")
        return None if value is None else bool(value)

    def _take(self, name: str, kinds: tuple[str, ...], what: str) -> Any:
        parameter = self._left.pop(name, None)
        if parameter is None:
            return None
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise _wrong(name, f"must be {what}")
        return getattr(parameter, kind)

    def _end(self, *known: str) -> None:
        """Refuse what no method took."""
        self._flag(_FINAL_RESPONSE)
        for name in self._left:
            stateless = ": models keep no state from call to call" if name in _SEQUENCE else ""
            names = list_names((*known, "priority", "timeout"))
            raise InvalidRequestError(
                f"{FIELD} has {show_name(name)}{stateless}; the model takes {names}", field=FIELD
            )


def _place(name: str) -> str:
    return f"{FIELD}.{name}"


def _wrong(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{_place(name)} {problem}", field=_place(name))
