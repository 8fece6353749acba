"""The limits of the contract, as clients are told of them."""

from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import common_pb2

# The number before the point is that of the package; the other grows with every addition.
CONTRACT_VERSION = "1.4"

ID_CHARACTERS_MAX = 256
# A prompt is tokenized once for every text, so that a long one multiplies.
PROMPT_CHARACTERS_MAX = 8192


def describe_limits(settings: Settings, *, max_text_characters: int = 0) -> common_pb2.Limits:
    """Return the limits of calls.

    Args:
        settings: The server's settings.
        max_text_characters: Most characters of a text for the model in question; 0 for none.
    """
    limits = common_pb2.Limits(
        max_request_bytes=settings.max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
        max_inputs=settings.max_inputs,
        max_text_characters=max_text_characters,
        max_prompt_characters=PROMPT_CHARACTERS_MAX,
        max_name_characters=NAME_CHARACTERS_MAX,
        max_id_characters=ID_CHARACTERS_MAX,
        max_stream_message_inputs=settings.max_stream_batch_inputs,
        max_stream_in_flight_inputs=settings.max_stream_in_flight_inputs,
    )
    limits.max_unary_duration.FromMilliseconds(round(settings.max_unary_s * 1000))
    return limits
