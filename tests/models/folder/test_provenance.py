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
