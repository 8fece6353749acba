"""Certificates for tests."""

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOSTS = ("localhost", "127.0.0.1")
_DAY = dt.timedelta(days=1)


class Authority:
    """A certificate authority; its certificate is a file in a folder of its own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name_of(name)
        self.certificate = _sign(
            self._name,
            self._key.public_key(),
            self._name,
            self._key,
            extensions=[(x509.BasicConstraints(ca=True, path_length=None), True)],
        )
        self.file = self.folder / "ca.pem"
        self.file.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self, name: str, *hosts: str, key: Any = None, days: tuple[float, float] = (-1, 30)
    ) -> "Pair":
        """Write a certificate and its key.

        Args:
            name: The name of its files.
            hosts: Names, addresses and URIs that it is for; none for no such extension.
            key: Its private key; None for a new one.
            days: From when until when it is valid, in days from now.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        extensions: list[tuple[Any, bool]] = []
        if hosts:
            extensions.append(
                (x509.SubjectAlternativeName([_general(one) for one in hosts]), False)
            )
        certificate = _sign(
            _name_of(name),
            key.public_key(),
            self._name,
            self._key,
            extensions=extensions,
            days=days,
        )
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pair


class Pair:
    """The files of a certificate and of its key."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a server that uses it."""
        return {
            "tls_certificate_file": (str(self.certificate),),
            "tls_key_file": (str(self.key),),
        }


def _name_of(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(host: str) -> x509.GeneralName:
    if "://" in host:
        return x509.UniformResourceIdentifier(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _sign(
    name: x509.Name,
    public: Any,
    issuer: x509.Name,
    key: Any,
    *,
    extensions: list[tuple[Any, bool]],
    days: tuple[float, float] = (-1, 30),
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())
