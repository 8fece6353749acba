"""Reads the files that TLS to Triton servers needs."""

from pathlib import Path

from embedgrpc.backends.triton.channels import TlsFiles
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.settings import Settings


def read_tls(settings: Settings) -> TlsFiles:
    """Return the contents of the files that the settings name.

    Raises:
        ModelError: A file cannot be read, or a certificate has no key.
    """
    if bool(settings.triton_certificate_file) != bool(settings.triton_key_file):
        raise ModelError("triton_certificate_file and triton_key_file must be set together")
    names = ("triton_ca_file", "triton_certificate_file", "triton_key_file")
    ca, certificate, key = (_read(name, getattr(settings, name)) for name in names)
    return TlsFiles(ca, certificate, key)


def _read(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ModelError(f"{name} {path} cannot be read: {error.strerror}") from None
