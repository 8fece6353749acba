"""The files that TLS needs, which may be replaced while a client uses them."""

import ssl
import time
from pathlib import Path
from typing import Any, Final

import grpc

_CHECK_INTERVAL_S: Final = 10.0


class TlsFiles:
    """Certificates and a key in PEM.

    Args:
        ca_file: The authorities to trust; "" for those that come with gRPC.
        certificate_file: The client's certificate with its chain; "" for none.
        key_file: Its private key.
        check_interval_s: The least time between two looks at the files.

    Raises:
        ValueError: There is a certificate without a key, or a key without a certificate.
    """

    def __init__(
        self,
        ca_file: str,
        certificate_file: str,
        key_file: str,
        *,
        check_interval_s: float = _CHECK_INTERVAL_S,
    ) -> None:
        if bool(certificate_file) != bool(key_file):
            raise ValueError("certificate_file and key_file must be set together")
        self._paths = {
            "ca_file": ca_file,
            "certificate_file": certificate_file,
            "key_file": key_file,
        }
        self._check_interval_s = check_interval_s
        self._checked_at = 0.0
        self._read_state: Any = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ValueError: One cannot be read or used.
        """
        self._checked_at = time.monotonic()
        state = self._state()
        ca, certificate, key = (self._read(name) for name in self._paths)
        self._check()
        self._read_state = state
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def have_changed(self) -> bool:
        """Return whether files have changed since they were read; look only now and then."""
        now = time.monotonic()
        if now - self._checked_at < self._check_interval_s:
            return False
        self._checked_at = now
        return bool(self._state() != self._read_state)

    def _read(self, name: str) -> bytes | None:
        path = self._paths[name]
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} {path} cannot be read: {error.strerror}") from None

    def _check(self) -> None:
        """Check what gRPC would only say in the handshake, and without a reason."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, certificate, key = self._paths.values()
        try:
            if ca:
                context.load_verify_locations(ca)
        except (ssl.SSLError, OSError):
            raise ValueError(f"ca_file {ca} has no certificate in PEM") from None
        try:
            if certificate:
                context.load_cert_chain(certificate, key, password=_refuse_password)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or "they are not PEM"
            raise ValueError(
                f"certificate_file {certificate} and key_file {key} cannot be used: {reason}"
            ) from None

    def _state(self) -> tuple[Any, ...]:
        """Return what tells that a file was changed or replaced, also behind a symbolic link."""
        return tuple(_state_of(path) for path in self._paths.values() if path)


def _state_of(path: str) -> tuple[int, ...] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _refuse_password() -> str:
    """Answer OpenSSL, which would else ask on the terminal."""
    raise ValueError("key_file is encrypted; give it without a password")
