from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES


def test_overridden_properties_name_the_configuration() -> None:
    """A property that is set names the configuration; the others name their files."""
    files = resolve(str(FIXTURES / "bert-mean"))
    plain = read(files).origins
    assert not [origin for origin in plain.values() if origin.startswith("configuration")]
    overrides = ModelOverrides(pooling=(Pooling.CLS,), max_tokens=7, lowercase=False)
    origins = read(files, overrides).origins
    changed = {name: origin for name, origin in origins.items() if plain.get(name) != origin}
    assert changed == {
        "poolings": "configuration: pooling",
        "max_tokens": "configuration: max_tokens",
        "lowercase": "configuration: lowercase",
    }


def test_properties_name_their_files() -> None:
    """A property names its file and key; those of the modules name modules.json as a whole."""
    origins = read(resolve(str(FIXTURES / "gemma-dense"))).origins
    modules = ("kind", "representations", "dense_layers", "normalize")
    assert {origins[name] for name in modules} == {"modules.json"}
    assert origins["poolings"].startswith("1_Pooling/config.json: pooling_mode")
    assert origins["dimensions"] == "3_Dense/config.json: out_features"
    assert origins["model_type"] == "config.json: model_type"
    assert "default_prompt_name" not in origins
