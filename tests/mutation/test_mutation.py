import pytest

from tests.mutation import mutants
from tests.mutation.suites import ROOT, find_modules, find_tests

ENGINE = ROOT / "src" / "embedgrpc" / "engine"


@pytest.mark.long
def test_every_module_has_tests() -> None:
    """Each module that serves calls has test files, those first that import it."""
    modules = find_modules([])
    assert len(modules) > 150
    assert all(find_tests(module) for module in modules)
    ledger = find_tests(ENGINE / "admission" / "ledger.py")
    assert ledger[0].name == "test_admission.py"
    assert all(test.is_relative_to(ROOT / "tests" / "engine") for test in ledger)
    settings = find_tests(ROOT / "src/embedgrpc/server/settings/settings.py")
    assert ROOT / "tests/server/settings/test_settings.py" in settings


def test_mutants_are_python_with_one_mistake() -> None:
    """A mutant compiles, differs from its module, and says where."""
    module = ENGINE / "admission" / "overload.py"
    found = mutants.find_mutants(module)
    assert {"ForgetStatement", "NumberReplacer", "AddNot"} <= {one.kind for one in found}
    lines = module.read_text().splitlines()
    for one in found:
        compile(one.code, "mutant", "exec")
        assert one.code.splitlines() != lines
        assert one.diff.startswith("@@")
        assert one.where.startswith("src/embedgrpc/engine/admission/overload.py:")
