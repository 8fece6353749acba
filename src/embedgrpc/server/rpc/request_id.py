"""The id that a caller may give a call, to find it again in logs, traces and errors.

It comes in the metadata `x-request-id` and goes back in the trailing metadata of the same name.
"""

import re
from collections.abc import Iterable

REQUEST_ID_KEY = "x-request-id"
# What UUIDs, ULIDs, trace ids and Base64 consist of: safe in every log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")


def find_request_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the first request id of a call; empty if there is none, or if it breaks the rules."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY:
            valid = isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None
            return str(value) if valid else ""
    return ""
