"""Bounds the metadata of a call.

gRPC's core announces its limit to clients (SETTINGS_MAX_HEADER_LIST_SIZE), and lets in what a
client sends beyond it.
"""

from collections.abc import Iterable

from embedgrpc.engine.errors import InvalidRequestError

METADATA_BYTES_MAX = 16_384
# Source: RFC 9113, section 6.5.2.
_ENTRY_BYTES = 32


def check_metadata_size(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Refuse a call with too much metadata.

    Raises:
        InvalidRequestError: It has more than `METADATA_BYTES_MAX` bytes.
    """
    size = sum(len(key) + len(value) + _ENTRY_BYTES for key, value in metadata or ())
    if size > METADATA_BYTES_MAX:
        raise InvalidRequestError(
            f"the metadata has {size} bytes; the limit is {METADATA_BYTES_MAX}",
            field="metadata",
            metadata={"bytes": str(size), "maxBytes": str(METADATA_BYTES_MAX)},
        )
