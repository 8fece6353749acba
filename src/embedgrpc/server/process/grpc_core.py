"""Settings of gRPC's core, which reads them from the environment once, when it is loaded."""

import logging
import os

_logger = logging.getLogger(__name__)

_VARIABLE = "GRPC_EXPERIMENTS"
_EVENT_ENGINE = "event_engine_listener"


def prepare_core(*, trusted_network: bool) -> None:
    """Choose the threads that read connections, and silence the core's own log.

    Call it before `grpc` is imported.

    By default gRPC's event engine reads on a pool of threads. In a trusted network, the thread
    that waits for calls also reads. That saves two thread switches a call, but a connection that
    floods the server keeps that thread busy, and no other connection is served meanwhile.

    A `GRPC_EXPERIMENTS` in the environment that names the event engine takes precedence.
    """
    # What it logs to stderr is neither ours nor JSON; what matters is raised as an error as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    experiments = [one.strip() for one in os.environ.get(_VARIABLE, "").split(",") if one.strip()]
    named = [one for one in experiments if one.removeprefix("-") == _EVENT_ENGINE]
    if trusted_network and not named:
        os.environ[_VARIABLE] = ",".join([*experiments, f"-{_EVENT_ENGINE}"])
    elif named and named[-1].startswith("-") is not trusted_network:
        _logger.warning(
            "the environment overrides trusted_network",
            extra={"variable": _VARIABLE, "value": os.environ[_VARIABLE]},
        )
