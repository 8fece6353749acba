"""Reads and checks the files of certificates and keys, for both ports.

They are checked before they are used: gRPC would report a bad one in each handshake, and only to
the client.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from embedgrpc.server.settings.settings import Settings

# A bundle of all public authorities has a quarter of it.
_FILE_BYTES_MAX = 1024 * 1024
# Clients accept nothing weaker. In each handshake of the HTTP port, the event loop makes a
# signature: it takes 3 ms with 4096 bits, and eight times as long with 8192.
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 4096
# No handshake of gRPC succeeds with P-521 or Ed25519.
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_KEY_TYPES = f"RSA with {_RSA_BITS_MIN} to {_RSA_BITS_MAX} bits, or EC on P-256 or P-384"


class CertificateError(Exception):
    """A file cannot be used; the message names the setting, the file, and what is wrong."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key.

    Attributes:
        file: The path of the certificate.
        certificate: The certificate, and those between it and its authority, in PEM.
        key: The private key in PEM.
        hosts: The host names that it is for, in lower case, and then the addresses. In a name,
            `*.` stands for any one label.
        expires_at: When it expires, in seconds since 1970.
    """

    file: str
    certificate: bytes
    key: bytes
    hosts: tuple[str, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a server proves its identity with, and what it checks its clients with.

    Attributes:
        pairs: The certificates; a client that names no known host gets the first.
        client_ca: The authorities of clients' certificates, in PEM; None where none is asked for.
    """

    pairs: Sequence[KeyPair]
    client_ca: bytes | None = None


def certificate_files(settings: Settings) -> tuple[str, ...]:
    """Return the paths of all files that `read_certificates` reads."""
    ca = (settings.tls_client_ca_file,) if settings.tls_client_ca_file else ()
    return settings.tls_certificate_file + settings.tls_key_file + ca


def read_certificates(settings: Settings) -> Certificates:
    """Read and check all files. Blocks.

    Raises:
        CertificateError: One cannot be used.
    """
    pairs = [
        _read_pair(certificate, key)
        for certificate, key in zip(
            settings.tls_certificate_file, settings.tls_key_file, strict=True
        )
    ]
    if not settings.tls_client_ca_file:
        return Certificates(pairs)
    ca = _read("tls_client_ca_file", settings.tls_client_ca_file)
    _parse_certificates("tls_client_ca_file", settings.tls_client_ca_file, ca)
    return Certificates(pairs, ca)


def _read_pair(certificate_file: str, key_file: str) -> KeyPair:
    certificate = _read("tls_certificate_file", certificate_file)
    key = _read("tls_key_file", key_file)
    leaf, *_ = _parse_certificates("tls_certificate_file", certificate_file, certificate)
    where = f"tls_certificate_file {certificate_file}"
    try:
        _check_key(key_file, key, leaf, certificate_file)
        hosts = _hosts(leaf, where)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        # cryptography reads parts of a certificate only when they are asked for.
        raise CertificateError(f"{where}: it cannot be read") from None
    now = dt.datetime.now(dt.UTC)
    if leaf.not_valid_after_utc <= now:
        raise CertificateError(f"{where}: it expired at {leaf.not_valid_after_utc:%FT%TZ}")
    if leaf.not_valid_before_utc > now:
        raise CertificateError(f"{where}: it is valid only from {leaf.not_valid_before_utc:%FT%TZ}")
    return KeyPair(certificate_file, certificate, key, hosts, leaf.not_valid_after_utc.timestamp())


def _read(setting: str, path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CertificateError(f"{setting} {path}: cannot be read: {error.strerror}") from None
    except RuntimeError:
        raise CertificateError(f"{setting} {path}: this user has no home folder") from None
    if len(content) > _FILE_BYTES_MAX:
        raise CertificateError(f"{setting} {path}: it has more than {_FILE_BYTES_MAX} bytes")
    return content


def _parse_certificates(setting: str, path: str, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise CertificateError(f"{setting} {path}: it has no certificate in PEM") from None


def _check_key(path: str, content: bytes, leaf: x509.Certificate, certificate_file: str) -> None:
    """Check that a key is of a kind that both ports can use, and that it fits."""
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise CertificateError(
            f"tls_key_file {path}: it is encrypted; give it without a password"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"tls_key_file {path}: it has no private key in PEM") from None
    match key:
        case rsa.RSAPrivateKey():
            usable = _RSA_BITS_MIN <= key.key_size <= _RSA_BITS_MAX
        case ec.EllipticCurvePrivateKey():
            usable = isinstance(key.curve, _CURVES)
        case _:
            usable = False
    if not usable:
        raise CertificateError(f"tls_key_file {path}: the key must be {_KEY_TYPES}")
    if key.public_key() != leaf.public_key():
        raise CertificateError(
            f"tls_key_file {path}: it is not the key of the first certificate in {certificate_file}"
        )


def _hosts(leaf: x509.Certificate, where: str) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise CertificateError(
            f"{where}: it has no subject alternative name, so no client accepts it"
        ) from None
    names = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
    return (*names, *map(str, found.get_values_for_type(x509.IPAddress)))
