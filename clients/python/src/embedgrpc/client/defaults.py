"""The values that hold where a caller sets none."""

from typing import Final

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_BATCH_SIZE: Final = 64
DEFAULT_RECONNECT_S: Final = 60.0
DEFAULT_READY_TIMEOUT_S: Final = 300.0
DEFAULT_REQUEST_BYTES: Final = 4 * 2**20  # gRPC's default, and the server's
DEFAULT_CONCURRENT_CALLS: Final = 100  # the limit of Envoy and of many other proxies
RESPONSE_BYTES_MAX: Final = 16 * 2**20
