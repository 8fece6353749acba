"""How large a request may be. No I/O.

A server refuses a message that is too large without a look at it: its answer names no text. So a
client measures its requests first, and learns from such an answer where the limit is lower.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from embedgrpc.client.errors import InputTooLongError, MessageTooLargeError

DEFAULT_REQUEST_BYTES: Final = 4 * 2**20  # gRPC's own default, and the server's
# Keys and lengths of an input, its id and its text, and of the message around them.
INPUT_OVERHEAD_BYTES: Final = 64

_REQUEST_BYTES_MIN: Final = 1024
_REQUEST_BYTES_MAX: Final = 2**31 - 1
_CHARACTER_BYTES_MAX: Final = 4
# Numbers and choices among the options of a request.
_OPTIONS_BYTES: Final = 1024
# How gRPC's libraries say it: "SERVER: Received message larger than max (5000 vs. 1000)".
_TOO_LARGE = re.compile(r"message larger than max(?: \((\d+) vs\. (\d+)\))?", re.IGNORECASE)
_ANSWER_TOO_LARGE = "CLIENT: Received"


class RequestLimit:
    """The most bytes of one request; the calls of a client share it.

    Args:
        max_bytes: The limit, as long as no server has told a lower one.

    Attributes:
        max_bytes: The limit now.

    Raises:
        ValueError: The limit is out of its range.
    """

    def __init__(self, max_bytes: int) -> None:
        if not _REQUEST_BYTES_MIN <= max_bytes <= _REQUEST_BYTES_MAX:
            raise ValueError(
                f"max_request_bytes is {max_bytes}; it must be from {_REQUEST_BYTES_MIN} to"
                f" {_REQUEST_BYTES_MAX}"
            )
        self.max_bytes = max_bytes

    def check(self, request: Any, texts: Mapping[str, Sequence[str]]) -> None:
        """Refuses a request that is larger than the limit.

        Args:
            request: The message.
            texts: All that is of any length in it, by the name of the argument.

        Raises:
            InputTooLongError: One text alone exceeds the limit.
            MessageTooLargeError: All of them together do.
        """
        # Measuring a message means writing it: not where it cannot be too large.
        bound = _OPTIONS_BYTES + sum(
            INPUT_OVERHEAD_BYTES * len(field) + _CHARACTER_BYTES_MAX * sum(map(len, field))
            for field in texts.values()
        )
        if bound <= self.max_bytes:
            return
        request_bytes = request.ByteSize()
        if request_bytes <= self.max_bytes:
            return
        for name, text in _named(texts):
            self.check_text(name, len(text.encode()))
        raise MessageTooLargeError(
            f"the request has {request_bytes} bytes, and the server takes {self.max_bytes}: send"
            " fewer texts in a call",
            metadata={"bytes": str(request_bytes), "maxBytes": str(self.max_bytes)},
        )

    def check_text(self, name: str, text_bytes: int) -> None:
        """Refuses a text that fits into no request.

        Args:
            name: The field to name.
            text_bytes: The text's size in UTF-8.

        Raises:
            InputTooLongError: It is too large.
        """
        room = self.max_bytes - INPUT_OVERHEAD_BYTES
        if text_bytes > room:
            what = f"has {text_bytes} bytes, and a request has room for {room}"
            raise InputTooLongError(
                f"{name} {what}: split the text, or raise max_request_bytes of the client if the"
                " server takes more",
                metadata={"bytes": str(text_bytes), "maxBytes": str(room)},
                field_violations=((name, what),),
            )

    def learn(self, error: Exception) -> None:
        """Takes over the limit that a server named when it refused a message.

        Args:
            error: What a call failed with.
        """
        if isinstance(error, MessageTooLargeError) and "maxBytes" in error.metadata:
            told = int(error.metadata["maxBytes"])
            self.max_bytes = min(self.max_bytes, max(told, _REQUEST_BYTES_MIN))


def too_large_error(details: str) -> MessageTooLargeError | None:
    """Reads the answer of gRPC itself to a message that is too large.

    Args:
        details: The message of a RESOURCE_EXHAUSTED.

    Returns:
        The error; None where the message says something else.
    """
    found = _TOO_LARGE.search(details)
    if found is None:
        return None
    size, limit = found.groups()
    metadata = {"bytes": size, "maxBytes": limit} if size else {}
    if _ANSWER_TOO_LARGE in details:
        return MessageTooLargeError(
            f"the answer has {size} bytes, and this client takes {limit}: ask for less in a call",
            metadata={"answerBytes": size, "maxAnswerBytes": limit},
        )
    sizes = f" has {size} bytes, and the server takes {limit}" if size else " exceeds its limit"
    return MessageTooLargeError(
        f"the server, or a proxy, refused a message that{sizes}: send fewer or shorter texts",
        metadata=metadata,
    )


def _named(texts: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    for name, field in texts.items():
        if isinstance(field, str):
            yield name, field
        else:
            for index, text in enumerate(field):
                yield f"{name}[{index}]", text
