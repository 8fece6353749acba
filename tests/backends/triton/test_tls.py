import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from embedgrpc.backends.base import BackendUnreachableError
from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.channels import TlsFiles
from embedgrpc.backends.triton.connection import Connection
from tests.backends.triton.conftest import OUTPUTS
from tests.backends.triton.kserve_server import KServeServer
from tests.backends.triton.test_triton_backend import check

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl to make certificates")


def make_certificate(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Return a key and a self-signed certificate for 127.0.0.1."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return key.read_bytes(), certificate.read_bytes()


def test_both_sides_present_certificates(tmp_path: Path) -> None:
    """The server must match the CA bundle, and the client must present its certificate."""
    server_key, server_certificate = make_certificate(tmp_path, "server")
    key, certificate = make_certificate(tmp_path, "client")
    credentials = grpc.ssl_server_credentials(
        [(server_key, server_certificate)],
        root_certificates=certificate,
        require_client_auth=True,
    )
    with KServeServer(credentials=credentials) as server:
        good = TlsFiles(ca=server_certificate, certificate=certificate, key=key)
        connection = Connection([server.address], model="m", tls=good, timeout_s=20)
        backend = TritonBackend(connection, outputs=OUTPUTS, inputs={})
        try:
            check(backend)
        finally:
            backend.close()
        for bad in (TlsFiles(ca=server_certificate), TlsFiles(ca=certificate), None):
            with pytest.raises(BackendUnreachableError):
                Connection([server.address], model="m", tls=bad, timeout_s=20)
