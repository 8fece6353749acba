from pathlib import Path

from tests.envoy.descriptor import FILE, make


def test_the_descriptor_is_that_of_the_contract(tmp_path: Path) -> None:
    """Making it again changes nothing."""
    make(tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == FILE.read_bytes(), "run: uv run poe generate"
