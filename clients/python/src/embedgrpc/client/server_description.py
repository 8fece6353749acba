"""The description of a server and of its limits."""

import datetime as dt
from dataclasses import dataclass

from google.protobuf import duration_pb2

from embedgrpc.client.errors import BadResponseError
from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import model_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of calls; 0 where the server did not say.

    Attributes:
        max_request_bytes: The limit of a request message.
        max_response_bytes: The limit of a response message.
        max_inputs: The limit of texts, or documents, in one unary call.
        max_text_characters: The limit of a text, in Unicode code points.
        max_prompt_characters: The limit of `prompt_text` and `instruction`.
        max_name_characters: The limit of the name of a model or a prompt.
        max_id_characters: The limit of an id in a stream. The clients send positions.
        max_stream_message_inputs: The limit of inputs in one message of a stream.
        max_stream_in_flight_inputs: The limit of inputs of a stream that have no result yet.
        max_unary_s: The longest unary call, in seconds.
    """

    max_request_bytes: int
    max_response_bytes: int
    max_inputs: int
    max_text_characters: int
    max_prompt_characters: int
    max_name_characters: int
    max_id_characters: int
    max_stream_message_inputs: int
    max_stream_in_flight_inputs: int
    max_unary_s: float


@dataclass(frozen=True, slots=True)
class Server:
    """The server that answers.

    Attributes:
        version: The version of the software, such as "0.2.0".
        contract_version: The version of the contract, such as "1.0".
        default_model: The id of the model for calls that name none.
        start_time: When the process started, in UTC.
        uptime_s: The seconds since then, on the server's clock.
        limits: The limits of every call.
    """

    version: str
    contract_version: str
    default_model: str
    start_time: dt.datetime
    uptime_s: float
    limits: Limits


def decode_limits(message: common_pb2.Limits) -> Limits:
    """Decode the limits of a server."""
    return Limits(
        max_request_bytes=message.max_request_bytes,
        max_response_bytes=message.max_response_bytes,
        max_inputs=message.max_inputs,
        max_text_characters=message.max_text_characters,
        max_prompt_characters=message.max_prompt_characters,
        max_name_characters=message.max_name_characters,
        max_id_characters=message.max_id_characters,
        max_stream_message_inputs=message.max_stream_message_inputs,
        max_stream_in_flight_inputs=message.max_stream_in_flight_inputs,
        max_unary_s=_seconds(message.max_unary_duration),
    )


def decode_server(message: pb.Server) -> Server:
    """Decode the description of a server."""
    return Server(
        version=message.version,
        contract_version=message.contract_version,
        default_model=message.default_model,
        start_time=message.start_time.ToDatetime(dt.timezone.utc),
        uptime_s=_seconds(message.uptime),
        limits=decode_limits(message.limits),
    )


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def require_room(*limits: int) -> None:
    """Check the limits of a stream.

    Raises:
        BadResponseError: They allow no input at all.
    """
    if min(limits) < 1:
        raise BadResponseError("the limits of the stream allow no input")
