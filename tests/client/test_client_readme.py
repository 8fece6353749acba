import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
ADDRESS = "127.0.0.1:50051"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_runs(example: str, target: str) -> None:
    """The examples of the README run unchanged, except for the address."""
    assert ADDRESS in example
    code = example.replace(ADDRESS, target).replace("100_000", "1_00").replace("99999", "99")
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout
