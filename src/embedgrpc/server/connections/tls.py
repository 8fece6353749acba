"""TLS of both ports, with certificates that may change while the server runs."""

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator

import grpc

from embedgrpc.machine.file_state import FileState, file_state
from embedgrpc.server.connections.certificates import (
    CertificateError,
    Certificates,
    certificate_files,
    read_certificates,
)
from embedgrpc.server.connections.tls_contexts import TlsContexts, listening_context
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)


class Tls:
    """The certificates of now, for both ports.

    New connections use new certificates as soon as they are read; open ones go on.

    Args:
        settings: They name the files.

    Raises:
        CertificateError: A file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = _state_of(certificate_files(settings))
        self._certificates, self._contexts = _read(settings)
        self._reloads = {"loaded": 0, "refused": 0}
        self._problem = ""
        self._expiry_logged_of: Certificates | None = None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that use the certificates of now in each handshake."""
        used = self._certificates

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # On gRPC's threads. Two of them at once may both hand over the same certificates.
            nonlocal used
            now = self._certificates
            if now is used:
                return None
            used = now
            return _for_grpc(now)

        return grpc.dynamic_ssl_server_credentials(
            _for_grpc(used),
            fetch,  # type: ignore[arg-type] # gRPC takes None for "as before"
            require_client_authentication=bool(self._settings.tls_client_ca_file),
        )

    def http_context(self) -> ssl.SSLContext:
        """Return a context that uses the certificates of now in each handshake."""
        return listening_context(lambda: self._contexts, _verify_mode(self._settings))

    async def watch(self) -> None:
        """Read the files again when they have changed, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.tls_reload_interval_s)
            # A network's file system may take its time.
            await asyncio.to_thread(self.reload)

    def check(self) -> str:
        """Return what is wrong with the files now; empty if they can be used. Blocks."""
        try:
            _read(self._settings)
        except CertificateError as error:
            return str(error)
        return ""

    def reload(self) -> None:
        """Use the files if they have changed and can be used; else keep what is in use. Blocks."""
        state = _state_of(certificate_files(self._settings))
        # Files that could not be used are read again: they may have been half written.
        if state != self._state or self._problem:
            self._state = state
            try:
                certificates, contexts = _read(self._settings)
            except CertificateError as error:
                self._refuse(str(error))
            else:
                # Files that were replaced while they were read last time look changed again.
                if certificates != self._certificates or self._problem:
                    self._accept(certificates, contexts)
        self._report_expiry()

    def _accept(self, certificates: Certificates, contexts: TlsContexts) -> None:
        self._certificates, self._contexts = certificates, contexts
        self._problem = ""
        self._reloads["loaded"] += 1
        expiry = min(pair.expires_at for pair in self._certificates.pairs)
        _logger.info("certificates reloaded", extra={"expires_in_s": int(expiry - time.time())})

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            self._reloads["refused"] += 1
            _logger.error(
                "certificates not reloaded; the former ones stay in use", extra={"problem": problem}
            )
        self._problem = problem

    def _report_expiry(self) -> None:
        """Log once that a certificate in use has expired."""
        now = time.time()
        expired = [pair.file for pair in self._certificates.pairs if pair.expires_at <= now]
        if expired and self._expiry_logged_of is not self._certificates:
            _logger.error("a certificate has expired", extra={"files": expired})
            self._expiry_logged_of = self._certificates

    def read(self) -> Iterator[Reading]:
        """Return when certificates expire, and how often they were reloaded. From any thread."""
        for pair in self._certificates.pairs:
            yield Reading(
                "embedgrpc.tls.certificate.expiry", pair.expires_at, {"certificate": pair.file}
            )
        for outcome, count in self._reloads.items():
            yield Reading("embedgrpc.tls.reloads", count, {"outcome": outcome})


def _read(settings: Settings) -> tuple[Certificates, TlsContexts]:
    certificates = read_certificates(settings)
    return certificates, TlsContexts(certificates, _verify_mode(settings))


def _verify_mode(settings: Settings) -> ssl.VerifyMode:
    if not settings.tls_client_ca_file:
        return ssl.CERT_NONE
    return ssl.CERT_REQUIRED if settings.tls_client_auth == "require" else ssl.CERT_OPTIONAL


def _for_grpc(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.certificate) for pair in certificates.pairs], certificates.client_ca
    )


def _state_of(paths: tuple[str, ...]) -> tuple[FileState, ...]:
    return tuple(map(file_state, paths))
