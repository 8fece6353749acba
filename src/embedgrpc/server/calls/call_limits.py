"""What the open calls of a server may hold, shared between callers, and for how long."""

from embedgrpc.server.calls.budget import Budget
from embedgrpc.server.settings.settings import Settings

# A request is held twice: the bytes that came in, and the message parsed from them.
REQUEST_COPIES = 2
# A response is held twice until its client reads it: here, and in gRPC's core.
RESPONSE_COPIES = 2
# Most streams that wait for a message have received no part of it: they reserve this share.
_WAITING_SHARE = 1 / 4
# At least so many responses of streams fit into the budget, each with what it may reserve.
_STREAM_RESPONSES = 9
# How many of the largest messages may come in at once for methods whose messages are small.
_SMALL_MESSAGES = 8


class CallLimits:
    """The budgets and time limits of all open calls.

    Args:
        settings: The settings.
        message_bytes_max: The most bytes of a message, where the listener takes less than the
            settings say.

    Attributes:
        settings: The time limits are among them.
        places: Open calls.
        requests: Bytes of requests that come in, or are worked on.
        small_requests: The same for methods whose messages are small.
        streams: Bytes that clients may send on streams that wait for their next message.
        responses: Bytes of responses that are made, or that clients have not read.
        message_bytes: Reserved for a message before it comes in.
        waiting_bytes: Reserved by a stream while it waits for its next message.
        stream_response_bytes_max: The most that is reserved for one response of a stream.
    """

    def __init__(self, settings: Settings, *, message_bytes_max: int | None = None) -> None:
        self.settings = settings
        self.places = Budget(settings.max_calls)
        self.requests = Budget(settings.max_held_request_bytes)
        self.streams = Budget(settings.max_held_request_bytes)
        self.responses = Budget(settings.max_held_answer_bytes)
        self.message_bytes = self.requests.largest(message_bytes_max or settings.max_request_bytes)
        self.small_requests = Budget(_SMALL_MESSAGES * self.message_bytes)
        self.waiting_bytes = max(int(_WAITING_SHARE * self.message_bytes), 1)
        self.stream_response_bytes_max = self.responses.total // _STREAM_RESPONSES

    @property
    def held_bytes(self) -> int:
        """Bytes of requests and responses that calls hold now."""
        return self.requests.held + self.small_requests.held + self.responses.held
