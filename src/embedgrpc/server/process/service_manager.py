"""Tells systemd how the service is doing, where it started this process.

Source: sd_notify(3). A datagram to the socket that NOTIFY_SOCKET names; without it, nothing.
"""

import logging
import socket
from collections.abc import Mapping

_logger = logging.getLogger(__name__)


def tell_service_manager(state: str, environment: Mapping[str, str]) -> None:
    """Send a state, such as "READY=1". A failure is logged: nothing else depends on it.

    Args:
        state: Assignments, one a line.
        environment: The environment of the process.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in Linux's abstract namespace
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(1)
            sending.connect(address)
            sending.send(state.encode())
    except OSError as error:
        _logger.warning("the service manager cannot be told", extra={"problem": str(error)})
