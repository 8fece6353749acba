import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.models.errors import ModelError
from embedgrpc.models.sources.source import short_name
from embedgrpc.models.sources.triton_source import (
    TritonSource,
    is_triton_source,
    join_endpoints,
    parse_triton_source,
)

HOSTS = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,10}", fullmatch=True) | st.just("[fe80::1]")
ENDPOINTS = st.lists(
    st.builds("{}:{}".format, HOSTS, st.integers(1, 65535)), min_size=1, max_size=5, unique=True
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)


@given(ENDPOINTS, NAMES, st.sampled_from(["", "1", "12"]), st.booleans())
def test_sources_are_read(endpoints: list[str], model: str, version: str, secure: bool) -> None:  # noqa: FBT001 - drawn
    """All parts of a source are read, and the model's name."""
    scheme = "triton+tls:" if secure else "triton:"
    source = f"{scheme}{','.join(endpoints)}/{model}{':' if version else ''}{version}"
    assert is_triton_source(source)
    assert parse_triton_source(source) == TritonSource(tuple(endpoints), model, version, secure)
    assert short_name(source) == model


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("triton:", "the form is"),
        ("triton:host:8001", "the form is"),
        ("triton:host:8001/", "the form is"),
        ("triton:host:8001/a/b", "the form is"),
        ("triton:host:8001/a:one", "the form is"),
        ("triton:host:8001/a:0", "the form is"),
        ("triton:/a", "'' is not HOST:PORT"),
        ("triton:host/a", "'host' is not HOST:PORT"),
        ("triton:host:0/a", "'host:0' is not HOST:PORT"),
        ("triton:host:65536/a", "'host:65536' is not HOST:PORT"),
        ("triton:::1:8001/a", "'::1:8001' is not HOST:PORT"),
        ("triton:a:1,,b:2/a", "'' is not HOST:PORT"),
        ("triton:a:1,a:1/m", "names an endpoint twice"),
        ("triton:" + ",".join(f"h:{port}" for port in range(1, 66)) + "/m", "the limit is 64"),
    ],
)
def test_bad_sources_are_told(source: str, problem: str) -> None:
    """What is wrong is named in one line."""
    with pytest.raises(ModelError) as caught:
        parse_triton_source(source)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from(["", "name="]), ENDPOINTS, NAMES), max_size=4))
def test_endpoints_are_not_separated(sources: list[tuple[str, list[str], str]]) -> None:
    """A list of sources separated by commas is taken apart between them alone."""
    whole = [f"{name}triton:{','.join(endpoints)}/{model}" for name, endpoints, model in sources]
    mixed = [one for source in whole for one in (source, "hf:org/name", "./folder")]
    assert join_endpoints(",".join(mixed).split(",")) == (mixed or [""])
