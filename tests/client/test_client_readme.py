import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.authority import Authority
from tests.client.servicer import serving

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
ADDRESS = "127.0.0.1:50051"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
TLS_EXAMPLES = [example for example in EXAMPLES if "ca_file" in example]


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one not in TLS_EXAMPLES])
def test_each_example_runs(example: str, target: str) -> None:
    """The examples of the README run unchanged, except for the address."""
    check_runs(example, target, Path.cwd())


def test_the_example_with_tls_runs(tmp_path: Path) -> None:
    """It finds its files where it runs."""
    (example,) = TLS_EXAMPLES
    authority = Authority(tmp_path, "files")
    authority.issue("client", "client")
    server = authority.issue("server", "127.0.0.1")
    credentials = grpc.ssl_server_credentials(
        [(server.key.read_bytes(), server.certificate.read_bytes())], authority.pem, True
    )
    with serving(credentials=credentials) as (_, target):
        check_runs(example, target, authority.folder)


def check_runs(example: str, target: str, folder: Path) -> None:
    """Run an example; it must print something, and no warning."""
    assert ADDRESS in example
    code = example.replace(ADDRESS, target).replace("100_000", "1_00").replace("99999", "99")
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout
