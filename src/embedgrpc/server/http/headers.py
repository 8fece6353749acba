"""The headers of the HTTP port, for its description and for browsers."""

from collections.abc import Mapping
from typing import Final

from embedgrpc.server.calls.call_metadata import WORK_CLASS_KEY
from embedgrpc.server.http.call import TIMEOUT_HEADER
from embedgrpc.server.http.failures import CHALLENGE_HEADER
from embedgrpc.server.rpc.request_id import REQUEST_ID_KEY

MODEL_HEADER: Final = "embedgrpc-model"
# What calls may send. Probes ignore them.
REQUEST_HEADERS: Final[Mapping[str, str]] = {
    TIMEOUT_HEADER: "How long the client waits: a number of seconds such as 2.5 or 2.5s, or 500ms."
    " The server's own limit holds as well.",
    WORK_CLASS_KEY: "interactive or bulk. Interactive calls, the default, go first.",
    REQUEST_ID_KEY: "An id of up to 128 letters, digits and _.:/+=@- that comes back in the"
    " response, and is in logs and traces.",
    MODEL_HEADER: "The model, where the body names none: an id or an alias.",
    "traceparent": "The caller's span, as in W3C Trace Context.",
}
# What every response may have.
RESPONSE_HEADERS: Final[Mapping[str, str]] = {
    REQUEST_ID_KEY: "The id that the request gave.",
}
# What the answer to inputs has; times in whole milliseconds.
TIMING_HEADERS: Final[Mapping[str, str]] = {
    "x-compute-type": "cpu, gpu or triton.",
    "x-compute-time": "The time that the answer took.",
    "x-compute-characters": "The characters of the inputs.",
    "x-compute-tokens": "The tokens that the model read.",
    "x-total-time": "The time that the answer took.",
    "x-tokenization-time": "The time until the inputs were tokenized.",
    "x-queue-time": "The time that they then waited.",
    "x-inference-time": "The time that the model took.",
}
# What an error may have that is worth another try.
RETRY_HEADERS: Final[Mapping[str, str]] = {
    "retry-after": "When to try again, in whole seconds.",
    "retry-after-ms": "When to try again, in milliseconds.",
}
# What every response may have where its caller has limits, under OpenAI's names.
RATE_HEADERS: Final[Mapping[str, str]] = {
    "x-ratelimit-limit-requests": "The requests that the caller may send at once.",
    "x-ratelimit-remaining-requests": "Those that are left.",
    "x-ratelimit-reset-requests": "The time until all are left again, such as 120ms or 6m0s.",
    "x-ratelimit-limit-tokens": "The tokens that the caller may use at once.",
    "x-ratelimit-remaining-tokens": "Those that are left.",
    "x-ratelimit-reset-tokens": "The time until all are left again.",
}
# What an error has whose caller is not known.
CHALLENGE_HEADERS: Final[Mapping[str, str]] = {
    CHALLENGE_HEADER: "How to prove who calls.",
}
# What the scripts of web pages may read.
EXPOSED_HEADERS: Final = (
    *RESPONSE_HEADERS,
    *TIMING_HEADERS,
    *RETRY_HEADERS,
    *RATE_HEADERS,
    *CHALLENGE_HEADERS,
)
