"""The memory that clients can occupy, as the server computes it."""

import logging
import subprocess
import sys

import pytest

from embedgrpc.server.settings.settings import MIB, Settings
from embedgrpc.server.settings.worst_case import client_bytes, memory_warning
from embedgrpc.server.telemetry.logs import is_no_fault_of_a_client


def test_the_default_fits_a_small_pod() -> None:
    """With the default settings clients get no more than half of 2 GiB."""
    assert memory_warning(Settings(), 2048 * MIB) == ""


def test_an_http_port_counts() -> None:
    """Its connections are counted apart, and still fit."""
    settings = Settings(http_address="127.0.0.1:0")
    more = client_bytes(settings) - client_bytes(Settings())
    assert more == settings.max_connections * 384 * 1024
    assert memory_warning(settings, 2048 * MIB) == ""


@pytest.mark.parametrize(
    "setting", ["max_held_request_bytes", "max_held_answer_bytes", "max_calls", "max_connections"]
)
def test_every_limit_counts(setting: str) -> None:
    """Each limit that is raised raises the worst case, until a warning names it."""
    default = Settings()
    raised = Settings(**{setting: getattr(default, setting) * 16})
    assert client_bytes(raised) > client_bytes(default)
    assert memory_warning(default, 2 * client_bytes(default)) == ""
    warning = memory_warning(raised, 2 * client_bytes(default))
    assert setting in warning
    assert f"{client_bytes(raised) // MIB} MiB" in warning


def test_connections_with_tls_are_larger() -> None:
    """Each has a state of its own for encryption."""
    pair = {"tls_certificate_file": ("a",), "tls_key_file": ("b",)}
    larger = client_bytes(Settings(**pair)) - client_bytes(Settings())  # type: ignore[arg-type]
    assert larger == Settings().max_connections * 40 * 1024


def test_check_says_it() -> None:
    """`embedgrpc check` prints the worst case, and warns where it is too much."""
    command = (sys.executable, "-m", "embedgrpc.cli.main", "check")
    flags = ("--max-held-answer-bytes", str(2**40))
    done = subprocess.run((*command, *flags), capture_output=True, text=True, check=True)
    assert "clients can occupy up to 1049188 MiB" in done.stderr
    assert "more than half of the" in done.stderr


def test_a_client_that_leaves_is_not_logged() -> None:
    """GRPC's error for an answer that could not be sent is passed over, and no other."""

    def record(message: str) -> logging.LogRecord:
        return logging.LogRecord("grpc", logging.ERROR, "", 0, message, None, None)

    left = "ExecuteBatchError raised in core by servicer method [/a/b]"
    assert not is_no_fault_of_a_client(record(left))
    assert not is_no_fault_of_a_client(record("Invalid encoding on b'text'"))
    refused = "Unexpected [UnicodeDecodeError] raised by servicer method [/a]"
    assert not is_no_fault_of_a_client(record(refused))
    assert is_no_fault_of_a_client(record("Unexpected [KeyError] raised by servicer method"))
