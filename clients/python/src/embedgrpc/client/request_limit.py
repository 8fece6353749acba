"""The size limit of requests. No I/O.

A server rejects a message that is too large before it reads it, so its error names no text. A
client therefore measures its requests, and learns from such an error that the limit is lower.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from embedgrpc.client.errors import InputTooLongError, MessageTooLargeError

# The tags and lengths of an input, its id and its text, and of the message around them.
INPUT_OVERHEAD_BYTES: Final = 64

_REQUEST_BYTES_MIN: Final = 1024
_REQUEST_BYTES_MAX: Final = 2**31 - 1
_CHARACTER_BYTES_MAX: Final = 4
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
            InputTooLongError: One text alone exceeds the limit.
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
        for name, text in _name_each(texts):
            self.check_text(name, len(text.encode()))
        raise MessageTooLargeError(
            f"the request has {request_bytes} bytes; the limit is {self.max_bytes}: send fewer"
            " texts in a call",
            metadata={"bytes": str(request_bytes), "maxBytes": str(self.max_bytes)},
        )

    def check_text(self, name: str, text_bytes: int) -> None:
        """Check the size of one text.

        Args:
            name: The name of the field, for the error.
            text_bytes: The size of the text in UTF-8.

        Raises:
            InputTooLongError: No request has room for the text.
        """
        room = self.max_bytes - INPUT_OVERHEAD_BYTES
        if text_bytes > room:
            what = f"has {text_bytes} bytes, and a request has room for {room}"
            raise InputTooLongError(
                f"{name} {what}: split the text, or raise max_request_bytes of the client if the"
                " server's is higher",
                metadata={"bytes": str(text_bytes), "maxBytes": str(room)},
                field_violations=((name, what),),
            )

    def learn(self, error: Exception) -> None:
        """Lower the limit to the one that a server reported when it rejected a message."""
        if isinstance(error, MessageTooLargeError) and "maxBytes" in error.metadata:
            reported = int(error.metadata["maxBytes"])
            self.max_bytes = min(self.max_bytes, max(reported, _REQUEST_BYTES_MIN))


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


def _name_each(texts: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    for name, field in texts.items():
        if isinstance(field, str):
            yield name, field
        else:
            for index, text in enumerate(field):
                yield f"{name}[{index}]", text
