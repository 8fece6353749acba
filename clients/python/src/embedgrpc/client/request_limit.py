"""The size limit of requests. No I/O.

A server rejects a message that is too large before it reads it, so its error names no text. A
client therefore measures its requests, and learns from such an error that the limit is lower.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from embedgrpc.client.errors import FieldViolation, InputTooLongError, MessageTooLargeError

# The tags and lengths of an input, its id and its text, and of the message around them.
INPUT_OVERHEAD_BYTES: Final = 64

_REQUEST_BYTES_MIN: Final = 1024
_REQUEST_BYTES_MAX: Final = 2**31 - 1
_CHARACTER_BYTES_MAX: Final = 4
_VIOLATIONS_MAX: Final = 100  # as the server
# The numbers and enums among the options of a request.
_OPTIONS_BYTES: Final = 1024
# gRPC's own text: "SERVER: Received message larger than max (5000 vs. 1000)".
_TOO_LARGE = re.compile(r"message larger than max(?: \((\d+) vs\. (\d+)\))?", re.IGNORECASE)
_ANSWER_TOO_LARGE = "CLIENT: Received"


class RequestLimit:
    """The size limit of one request, shared by the calls of a client.

    Args:
        max_bytes: The limit until a server reports a lower one.

    Attributes:
        max_bytes: The current limit.

    Raises:
        ValueError: The limit is out of range.
    """

    def __init__(self, max_bytes: int) -> None:
        if not _REQUEST_BYTES_MIN <= max_bytes <= _REQUEST_BYTES_MAX:
            raise ValueError(
                f"max_request_bytes is {max_bytes}; it must be from {_REQUEST_BYTES_MIN} to"
                f" {_REQUEST_BYTES_MAX}"
            )
        self.max_bytes = max_bytes

    def check(self, request: Any, texts: Mapping[str, Sequence[str]]) -> None:
        """Check the size of a request.

        Args:
            request: The message.
            texts: Every part of it of unlimited length, by the name of the argument.

        Raises:
            InputTooLongError: A text alone exceeds the limit; the error names all that do.
            MessageTooLargeError: All of them together exceed it.
        """
        # `ByteSize` takes time: skip it where the message cannot be too large.
        bound = _OPTIONS_BYTES + sum(
            INPUT_OVERHEAD_BYTES * len(field) + _CHARACTER_BYTES_MAX * sum(map(len, field))
            for field in texts.values()
        )
        if bound <= self.max_bytes:
            return
        request_bytes = request.ByteSize()
        if request_bytes <= self.max_bytes:
            return
        too_long = [
            error
            for name, field in texts.items()
            for error in (
                [self._error_of(name, field)]
                if isinstance(field, str)
                else self.too_long(name, field).values()
            )
            if error is not None
        ]
        if too_long:
            raise combined_error(too_long)
        raise MessageTooLargeError(
            f"the request has {request_bytes} bytes; the limit is {self.max_bytes}: send fewer"
            " texts in a call",
            metadata={"bytes": str(request_bytes), "maxBytes": str(self.max_bytes)},
        )

    def check_text(self, name: str, text_bytes: int, *, beside_bytes: int = 0) -> None:
        """Check the size of one text.

        Args:
            name: The name of the field, for the error.
            text_bytes: The size of the text in UTF-8.
            beside_bytes: The size of what must be in the same request.

        Raises:
            InputTooLongError: No request has room for the text.
        """
        room = self.max_bytes - INPUT_OVERHEAD_BYTES - beside_bytes
        if text_bytes > room:
            what = f"has {text_bytes} bytes, and a request has room for {room}"
            raise InputTooLongError(
                f"{name} {what}: split the text, or raise max_request_bytes of the client if the"
                " server's is higher",
                metadata={
                    "label": "MESSAGE_TOO_LARGE",
                    "bytes": str(text_bytes),
                    "maxBytes": str(room),
                },
                field_violations=(FieldViolation(name, what, InputTooLongError.reason),),
            )

    def too_long(self, name: str, texts: Sequence[str]) -> dict[int, InputTooLongError]:
        """Return an error for each text that no request has room for, by its position.

        Args:
            name: The name of the list, for the errors.
            texts: The texts.
        """
        errors = {}
        for index, text in enumerate(texts):
            if _CHARACTER_BYTES_MAX * len(text) + INPUT_OVERHEAD_BYTES > self.max_bytes:
                error = self._error_of(f"{name}[{index}]", text)
                if error is not None:
                    errors[index] = error
        return errors

    def lower(self, max_bytes: int) -> None:
        """Lower the limit to that of the server; 0 where the server did not say."""
        if max_bytes > 0:
            self.max_bytes = min(self.max_bytes, max(max_bytes, _REQUEST_BYTES_MIN))

    def learn(self, error: Exception) -> None:
        """Lower the limit to the one that a server reported when it rejected a message."""
        if isinstance(error, MessageTooLargeError):
            self.lower(int(error.metadata.get("maxBytes", 0)))

    def _error_of(self, name: str, text: str) -> InputTooLongError | None:
        try:
            self.check_text(name, len(text.encode()))
        except InputTooLongError as error:
            return error.with_traceback(None)
        return None


def combined_error(errors: Sequence[InputTooLongError]) -> InputTooLongError:
    """Return one error that names the fields of several, at most 100."""
    first = errors[0]
    violations = [violation for each in errors for violation in each.field_violations]
    return InputTooLongError(
        first.message,
        metadata=first.metadata,
        field_violations=tuple(violations[:_VIOLATIONS_MAX]),
    )


def too_large_error(details: str) -> MessageTooLargeError | None:
    """Return the error for gRPC's own text about a message that is too large; None for others.

    Args:
        details: The details of a RESOURCE_EXHAUSTED.
    """
    found = _TOO_LARGE.search(details)
    if found is None:
        return None
    size, limit = found.groups()
    metadata = {"bytes": size, "maxBytes": limit} if size else {}
    if _ANSWER_TOO_LARGE in details:
        return MessageTooLargeError(
            f"the response has {size} bytes; this client accepts {limit}: ask for less in a call",
            metadata={"answerBytes": size, "maxAnswerBytes": limit},
        )
    sizes = f"of {size} bytes; the limit is {limit}" if size else "that exceeds its limit"
    return MessageTooLargeError(
        f"the server, or a proxy, rejected a message {sizes}: send fewer or shorter texts",
        metadata=metadata,
    )
