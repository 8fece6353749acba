"""How a command on the server's machine trusts the server that has these settings."""

from embedgrpc.server.settings.settings import Settings


class NoOwnTlsError(Exception):
    """This machine cannot call the main address; the message says why."""


def own_tls(settings: Settings) -> dict[str, str]:
    """Return what the client needs to trust the main address; empty where there is no TLS.

    It trusts the server's certificate itself, by one of its own names: the address at which this
    machine reaches the server is seldom among them.

    Raises:
        NoOwnTlsError: The server wants a client's certificate, or its own has no host or cannot be
            used.
    """
    if not settings.tls_certificate_file or settings.address.startswith("unix:"):
        return {}
    if settings.tls_client_ca_file:
        raise NoOwnTlsError("clients need a certificate at the main address")
    # Imported only where it is used: it costs time.
    from embedgrpc.server.connections.certificates import (  # noqa: PLC0415 - see above
        CertificateError,
        read_certificates,
    )

    try:
        first = read_certificates(settings).pairs[0]
    except CertificateError as error:
        raise NoOwnTlsError(str(error)) from None
    if not first.hosts:
        raise NoOwnTlsError(f"tls_certificate_file {first.file} has no host name")
    return {"ca_file": first.file, "server_name": first.hosts[0].replace("*", "any", 1)}
