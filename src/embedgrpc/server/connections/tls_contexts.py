"""TLS as Python's ssl does it, for the HTTP port."""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile
from typing import BinaryIO

from embedgrpc.server.connections.certificates import CertificateError, Certificates, KeyPair


class TlsContexts:
    """One context for each certificate, from which a connection gets the one for its host.

    Args:
        certificates: What they contain.
        verify_mode: Whether a client must, may or need not present a certificate.

    Raises:
        CertificateError: OpenSSL refuses a certificate or a key.
    """

    def __init__(self, certificates: Certificates, verify_mode: ssl.VerifyMode) -> None:
        contexts = [
            _context_of(pair, certificates.client_ca, verify_mode) for pair in certificates.pairs
        ]
        self._default = contexts[0]
        self._by_name: Mapping[str, ssl.SSLContext] = {
            name: context
            # The first certificate with a name wins.
            for pair, context in reversed(list(zip(certificates.pairs, contexts, strict=True)))
            for name in pair.hosts
        }

    def choose(self, host: str | None) -> ssl.SSLContext:
        """Return the context for the host that a client asks for; the first without a match."""
        if not host:
            return self._default
        host = host.lower()
        wildcard = f"*.{host.partition('.')[2]}"
        return self._by_name.get(host) or self._by_name.get(wildcard) or self._default


def listening_context(
    current: Callable[[], TlsContexts], verify_mode: ssl.VerifyMode
) -> ssl.SSLContext:
    """Return the context to listen with: each handshake goes on with a context of now.

    Args:
        current: Returns the contexts of now.
        verify_mode: Whether a client must, may or need not present a certificate.
    """
    context = _new_context(verify_mode)

    def choose(connection: ssl.SSLObject, host: str | None, _: ssl.SSLContext) -> None:
        connection.context = current().choose(host)

    # Called in every handshake, also where the client names no host.
    context.sni_callback = choose
    return context


def _new_context(verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make the server sign again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if verify_mode is not ssl.CERT_NONE:
        context.verify_mode = verify_mode
        # As gRPC does: an intermediate authority in the file is trusted by itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session would skip the check against the authorities of now. TLS 1.2 can resume
        # one without a ticket, too, and Python cannot prevent that.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _context_of(
    pair: KeyPair, client_ca: bytes | None, verify_mode: ssl.VerifyMode
) -> ssl.SSLContext:
    context = _new_context(verify_mode)
    try:
        with ExitStack() as files:
            # Python reads them from files only. Those that were checked may have changed since.
            certificate, key = (
                files.enter_context(_as_file(content)) for content in (pair.certificate, pair.key)
            )
            context.load_cert_chain(certificate, key, password=_refuse_password)
        if client_ca is not None:
            # Comments between the certificates may have any letters.
            context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise CertificateError(
            f"tls_certificate_file {pair.file}: OpenSSL refuses it: {reason}"
        ) from None
    return context


def _refuse_password() -> str:
    """Answer OpenSSL, which would else ask on the terminal."""
    raise ValueError("the key is encrypted")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a path to bytes, which are not written to a disk where the system can do without."""
    with _memory_file() if hasattr(os, "memfd_create") else TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _memory_file() -> BinaryIO:
    return os.fdopen(os.memfd_create("tls"), "w+b")
