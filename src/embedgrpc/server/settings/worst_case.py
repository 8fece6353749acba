"""How much memory clients can make the server hold, computed from its settings."""

from embedgrpc.server.settings.settings import MIB, Settings

# A call that is not read holds the window of its stream, and what gRPC keeps of a call.
_CALL_BYTES = 64 * 1024 + 20 * 1024
# Buffers of a connection; measured with idle ones, and doubled.
_CONNECTION_BYTES = 80 * 1024


def client_bytes(settings: Settings) -> int:
    """Bound what clients can make the server hold at once, whatever they do; models not counted.

    It is what open calls and connections take, requests that are worked on and those that are on
    their way on streams, and answers.
    """
    return (
        settings.max_connections * _CONNECTION_BYTES
        + settings.max_calls * _CALL_BYTES
        # Once they have come in, requests may take twice what was reserved for them; streams that
        # wait for a message reserve a quarter of the largest.
        + (2 + 4) * settings.max_held_request_bytes
        # Half-sent messages to methods that take names.
        + 8 * settings.max_request_bytes
        + settings.max_held_answer_bytes
    )


def memory_warning(settings: Settings, available_bytes: int) -> str:
    """Return a warning where clients can make the server hold more than half of its memory.

    The other half is for models and what they are run with. Empty where all is well.

    Args:
        settings: The settings.
        available_bytes: What the process may use.
    """
    worst = client_bytes(settings)
    if worst <= available_bytes // 2:
        return ""
    return (
        f"clients can make the server hold {worst // MIB} MiB, more than half of the"
        f" {available_bytes // MIB} MiB that it may use; lower max_held_request_bytes,"
        " max_held_answer_bytes, max_calls or max_connections"
    )
