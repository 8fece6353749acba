"""A few drawn models, where the reference libraries are installed."""

import json
import subprocess
from pathlib import Path

import pytest

from embedgrpc.models.folder.known_keys import Keys, Use
from tests.models.folder.collect_reference_keys import collect
from tests.models.folder.test_known_keys import FILES, MODULES
from tests.models.tokenizers.test_tokenizer_class import find_unknown
from tests.reference.drawing import KINDS, draw
from tests.reference.environment import EnvironmentMissingError, find_packages, find_python
from tests.reference.generated import run

_FOLDERS = 20


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has the reference libraries."""
    try:
        return find_python()
    except EnvironmentMissingError as error:
        pytest.skip(str(error))


def test_a_seed_draws_the_same_settings() -> None:
    """A model that differs can be made again, and settings vary."""
    assert draw(7) == draw(7)
    drawn = [draw(seed) for seed in range(200)]
    assert {one["kind"] for one in drawn} == set(KINDS)
    classes = {one["tokenizer_config.json"].get("tokenizer_class") for one in drawn}
    assert len(classes) > 12


def test_drawn_models_are_those_of_the_reference(python: Path, tmp_path: Path) -> None:
    """Tokens, vectors and scores are equal, or the model is refused with a reason."""
    verdicts = list(run(range(_FOLDERS), tmp_path, python))
    assert len(verdicts) == _FOLDERS
    assert [one for one in verdicts if one.outcome == "DIFFERENT"] == []
    assert sum(one.outcome == "equal" for one in verdicts) >= _FOLDERS // 2


def test_the_classes_of_the_installed_reference_are_known(python: Path) -> None:
    """A newer release shows which of its tokenizer classes have no verdict."""
    program = Path(__file__).with_name("classes.py")
    done = subprocess.run([python, program], check=True, capture_output=True, text=True)
    assert find_unknown(json.loads(done.stdout)) == []


def test_the_keys_of_the_installed_reference_are_known(python: Path) -> None:
    """A newer release of the libraries shows which of its keys have no verdict."""
    found = collect(find_packages(python))
    tables: dict[str, tuple[Keys, object]] = {
        name: (keys, found[name]) for name, keys in FILES.items()
    }
    modules = found["modules"]
    assert isinstance(modules, dict)
    tables |= {name: (keys, modules[name]) for name, keys in MODULES.items()}
    for name, (keys, listed) in tables.items():
        assert isinstance(listed, list)
        assert [key for key in listed if keys.use_of(key) is Use.UNKNOWN] == [], name
