from pathlib import Path

import pytest

from embedgrpc.backends.triton.channels import TlsFiles
from embedgrpc.models.errors import ModelError
from embedgrpc.server.loading.triton_tls import read_tls
from embedgrpc.server.settings.settings import Settings


def _write(folder: Path, **contents: str) -> dict[str, str]:
    """Write a file for each setting, and return their paths."""
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {f"triton_{name}_file": str(folder / name) for name in contents}


def test_no_file_means_the_bundled_roots() -> None:
    """Without settings there is nothing to read."""
    assert read_tls(Settings()) == TlsFiles(None, None, None)


def test_each_file_is_read(tmp_path: Path) -> None:
    """Every file goes into its own place; the CA bundle may stand alone."""
    files = _write(tmp_path, ca="roots", certificate="chain", key="secret")
    assert read_tls(Settings(**files)) == TlsFiles(b"roots", b"chain", b"secret")  # type: ignore[arg-type]  # pydantic converts
    alone = read_tls(Settings(triton_ca_file=files["triton_ca_file"]))
    assert alone == TlsFiles(b"roots", None, None)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path, ca="roots")
    assert read_tls(Settings(triton_ca_file="~/ca")) == TlsFiles(b"roots", None, None)


@pytest.mark.parametrize("only", ["certificate", "key"])
def test_a_certificate_needs_its_key(tmp_path: Path, only: str) -> None:
    """One of the two alone is an error that names both settings."""
    files = _write(tmp_path, **{only: "content"})
    with pytest.raises(ModelError, match="triton_certificate_file and triton_key_file"):
        read_tls(Settings(**files))  # type: ignore[arg-type]  # pydantic converts


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The error names the setting, the path and the reason."""
    missing = tmp_path / "missing"
    with pytest.raises(ModelError) as caught:
        read_tls(Settings(triton_ca_file=str(missing)))
    assert str(caught.value) == (
        f"triton_ca_file {missing} cannot be read: No such file or directory"
    )
