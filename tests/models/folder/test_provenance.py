from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES


def test_the_configuration_is_named_where_it_says_something() -> None:
    """What is set wins over the files, and the rest still names its file."""
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
