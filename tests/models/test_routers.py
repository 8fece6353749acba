"""Models with routes: which modules the texts of a role pass, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import read
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.folder.routes import RoutedProperties, read_routes
from embedgrpc.models.folder.routing import read_routing
from embedgrpc.models.graphs.content_hash import hash_routes
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Pooling, Representation, Similarity, TextRole, WeightType
from embedgrpc.models.sources.config_files import read_module_folders
from embedgrpc.models.sources.source import resolve
from tests.cli.command import embedgrpc
from tests.models.runner import FIXTURES, copy_fixture, edit_json, expected

NAMES = ("router-splade", "router-mixed", "router-nested", "asym-dense")
QUERY, DOCUMENT = TextRole.QUERY, TextRole.DOCUMENT
ROUTER = "router_config.json"


def read_folder(folder: Path, overrides: ModelOverrides | None = None) -> RoutedProperties:
    """Read the routes of a folder."""
    return read_routes(resolve(str(folder)), overrides)


def test_splade() -> None:
    """Queries look up weights, other texts pass the encoder; limits are the largest."""
    found = read_folder(FIXTURES / "router-splade")
    assert found.by_role == {None: "document", QUERY: "query", DOCUMENT: "document"}
    assert list(found.by_route) == ["document", "query"]
    query, document = found.by_route["query"], found.by_route["document"]
    assert query.weight_table is not None
    assert document.splade is not None
    assert (query.max_tokens, document.max_tokens) == (24, 80)
    assert found.common.max_tokens == expected("router-splade")["settings"]["max_seq_length"]
    assert found.common.similarity is Similarity.DOT
    assert found.common.representations == (Representation.SPARSE,)


def test_modules_around_the_router() -> None:
    """Each route has the modules before and behind the router, too."""
    found = read_folder(FIXTURES / "asym-dense")
    assert found.by_role == {None: "query", QUERY: "query", DOCUMENT: "document"}
    for name, route in found.by_route.items():
        assert route.transformer_folder == FIXTURES / "asym-dense"
        assert [layer.folder.name for layer in route.dense_layers] == [f"{name}_0_Dense"]
        assert route.poolings == (Pooling.MEAN,)
        assert route.normalize


def test_routers_in_routes() -> None:
    """A text passes all routers on its way; a route has the names that they give it."""
    found = read_folder(FIXTURES / "router-nested")
    assert found.by_role == {
        None: "text/long/other",
        QUERY: "text/short",
        DOCUMENT: "text/long/document",
    }
    assert found.skipped == ("image",)
    assert found.by_route["text/short"].table is not None
    for name in ("other", "document"):
        route = found.by_route[f"text/long/{name}"]
        assert [layer.folder.name for layer in route.dense_layers] == [f"{name}_0_Dense"]
        assert (route.poolings, route.normalize) == ((Pooling.MEAN,), True)


def test_an_encoder_beside_the_router(tmp_path: Path) -> None:
    """A module without a name is in the router's own folder, as published models have it."""
    folder = copy_fixture("router-splade", tmp_path)
    for path in (folder / "document_0_Transformer").iterdir():
        path.rename(folder / path.name)
    config = json.loads((folder / ROUTER).read_text())
    config["types"][""] = config["types"].pop("document_0_Transformer")
    config["structure"]["document"][0] = ""
    (folder / ROUTER).write_text(json.dumps(config))
    hashes = []
    for place in (folder, FIXTURES / "router-splade"):
        files = resolve(str(place))
        document = read_routes(files).by_route["document"]
        hashes.append(prepare(files, document, cache_dir=tmp_path / "cache").content_hash)
    assert hashes[0] == hashes[1]
    assert read_folder(folder).by_route["document"].transformer_folder == folder


def test_every_folder_is_listed() -> None:
    """The folders of routes are listed, so that they are downloaded and hashed."""
    folders = set(read_module_folders(FIXTURES / "router-splade"))
    assert folders == {
        "",
        "query_0_SparseStaticEmbedding",
        "document_0_Transformer",
        "document_1_SpladePooling",
    }
    inner = set(
        read_module_folders(FIXTURES / "router-nested", kinds=("Router", "StaticEmbedding"))
    )
    assert inner == {
        "",
        "text_0_Router",
        "text_0_Router/long_2_Router",
        "text_0_Router/short_0_StaticEmbedding",
    }
    layers = read_module_folders(FIXTURES / "asym-dense", kinds=("Dense",))
    assert set(layers) == {"2_Router/query_0_Dense", "2_Router/document_0_Dense"}


_MODULES = {"a": "models.Transformer", "b": "models.Transformer", "c": "models.Transformer"}
ANY = [None, QUERY, DOCUMENT]


def _write(folder: Path, routes: list[str], **parameters: Any) -> Path:
    types = {name: f"sentence_transformers.{kind}" for name, kind in _MODULES.items()}
    structure = {name: [module] for name, module in zip(routes, "abc", strict=False)}
    config = {"types": types, "structure": structure, "parameters": parameters}
    (folder / ROUTER).write_text(json.dumps(config))
    entry = {"type": "sentence_transformers.base.modules.router.Router", "path": ""}
    (folder / "modules.json").write_text(json.dumps([entry]))
    return folder


@pytest.mark.parametrize(
    ("routes", "parameters", "chosen"),
    [
        (["query", "document"], {}, ["query", "query", "document"]),
        (["query", "document"], {"default_route": "document"}, ["document", "query", "document"]),
        (["query", "document"], {"allow_empty_key": False}, ["", "query", "document"]),
        (["text"], {"allow_empty_key": False}, ["text", "text", "text"]),
        (["x", "y"], {"route_mappings": {"('query', None)": "y"}}, ["x", "y", ""]),
        (
            ["x", "y"],
            {"route_mappings": {"(None, 'text')": "x", "('query', None)": "y"}},
            ["x", "y", "x"],
        ),
        (
            ["x", "y", "query"],
            {
                "route_mappings": {
                    "(None, None)": "x",
                    "('query', 'text')": "y",
                    "('document', ('text', 'image'))": "query",
                    "(None, 'image')": "query",
                }
            },
            ["x", "y", "x"],
        ),
        (
            ["x", "image"],
            {"default_route": "x", "route_mappings": {"(None, 'image')": "image"}},
            ["x", "", ""],
        ),
    ],
)
def test_choice(
    tmp_path: Path, routes: list[str], parameters: dict[str, Any], chosen: list[str]
) -> None:
    """Mappings go before names, exact ones first; the default is for texts without a role."""
    routing = read_routing(_write(tmp_path, routes, **parameters))
    assert routing is not None
    assert [routing.by_role.get(role, "") for role in ANY] == chosen


_INNER = {"query": ["c"], "document": ["d"]}


def _write_inner(folder: Path, routes: dict[str, list[str]], **parameters: Any) -> None:
    """Write a router, whose modules `r` are routers, `t` tables, and all others encoders."""
    folder.mkdir(exist_ok=True)
    kinds = {"r": "base.modules.router.Router", "t": "models.StaticEmbedding"}
    names = {name for modules in routes.values() for name in modules}
    types = {
        name: f"sentence_transformers.{kinds.get(name, 'models.Transformer')}" for name in names
    }
    config = {"types": types, "structure": routes, "parameters": parameters}
    (folder / ROUTER).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("outer", "outer_rules", "inner", "inner_rules", "chosen"),
    [
        # The task reaches the inner router.
        ({"text": ["r"]}, {}, _INNER, {}, ["text/query", "text/query", "text/document"]),
        # The inner router's own default, and its refusals.
        (
            {"text": ["r"]},
            {},
            _INNER,
            {"default_route": "document"},
            ["text/document", "text/query", "text/document"],
        ),
        (
            {"text": ["r"]},
            {},
            _INNER,
            {"allow_empty_key": False},
            ["", "text/query", "text/document"],
        ),
        ({"text": ["r"]}, {}, {"query": ["c"]}, {}, ["text/query", "text/query", ""]),
        # The modality reaches it, even behind a table, as the outer router has inferred it.
        (
            {"query": ["t", "r"], "document": ["a"]},
            {},
            {"text": ["c"], "x": ["d"]},
            {"route_mappings": {"(None, 'image')": "x"}},
            ["query/text", "query/text", "document"],
        ),
        # Roles that go elsewhere do not reach it.
        (
            {"query": ["a"], "document": ["b", "r"]},
            {"default_route": "query"},
            _INNER,
            {},
            ["query", "query", "document/document"],
        ),
        # Two routers in one route.
        (
            {"text": ["r", "a", "r"]},
            {},
            _INNER,
            {},
            ["text/query/query", "text/query/query", "text/document/document"],
        ),
    ],
)
def test_choice_among_inner_routes(
    tmp_path: Path,
    *,
    outer: dict[str, list[str]],
    outer_rules: dict[str, Any],
    inner: dict[str, list[str]],
    inner_rules: dict[str, Any],
    chosen: list[str],
) -> None:
    """The task and the modality reach a router in a route unchanged."""
    _write(tmp_path, [])
    _write_inner(tmp_path, outer, **outer_rules)
    _write_inner(tmp_path / "r", inner, **inner_rules)
    routing = read_routing(tmp_path)
    assert routing is not None
    assert [routing.by_role.get(role, "") for role in ANY] == chosen


def test_names_that_are_equal_when_joined(tmp_path: Path) -> None:
    """Two routes never share a name."""
    _write(tmp_path, [])
    _write_inner(tmp_path, {"query": ["r"], "query/x": ["a"]}, default_route="query/x")
    _write_inner(tmp_path / "r", {"x": ["c"]}, route_mappings={"(None, None)": "x"})
    routing = read_routing(tmp_path)
    assert routing is not None
    assert routing.by_role == {None: "query/x", QUERY: "query/x+"}
    assert routing.routes["query/x"].entries != routing.routes["query/x+"].entries


def test_an_inner_route_that_no_text_reaches(tmp_path: Path) -> None:
    """One for a task that no request can name is refused, with the file of its router."""
    _write(tmp_path, [])
    _write_inner(tmp_path, {"text": ["r"]})
    _write_inner(tmp_path / "r", {**_INNER, "code": ["e"]})
    with pytest.raises(ModelError, match=rf"r/{ROUTER}: no text reaches the route 'code'"):
        read_routing(tmp_path)


def test_routers_without_end(tmp_path: Path) -> None:
    """More than four in one another, or one that leads to itself, are refused; all are listed."""
    _write(tmp_path, [])
    folder = tmp_path
    for _ in range(4):
        _write_inner(folder, {"text": ["r"]})
        folder /= "r"
    _write_inner(folder, {"text": ["a"]})
    with pytest.raises(ModelError, match="more than 4 routers in one another"):
        read_routing(tmp_path)
    assert read_module_folders(tmp_path)[-1] == "r/r/r/r"
    _write_inner(tmp_path / "r" / "r" / "r", {"text": ["a"]})
    assert read_routing(tmp_path) is not None
    config = {
        "types": dict.fromkeys((".", "./.", "././.", "r"), "a.Router"),
        "structure": {"text": ["."]},
    }
    (tmp_path / ROUTER).write_text(json.dumps(config))
    assert len(read_module_folders(tmp_path)) < 1000
    with pytest.raises(ModelError, match="more than 4 routers in one another"):
        read_routing(tmp_path)


def _router(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / ROUTER, **changes)


def _parameters(**changes: Any) -> Callable[[Path], None]:
    return _router(parameters=changes)


def _kind(kind: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / ROUTER).read_text())
        values["types"]["document_1_SpladePooling"] = kind
        (folder / ROUTER).write_text(json.dumps(values))

    return apply


BOTH = {"query": ["query_0_SparseStaticEmbedding"], "document": ["document_0_Transformer"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / ROUTER).unlink(), f"{ROUTER} must hold the routes of Router"),
        (lambda f: (f / ROUTER).write_text("[]"), ROUTER),
        (_router(structure={"query": "x"}), "structure.'query' must be a list of names"),
        (_router(structure={"query": ["x"]}), "names the module 'x', which types does not have"),
        (_router(structure={"query": [1]}), "structure.'query' must be a list of names"),
        (_router(structure=[]), "structure must be an object"),
        (_router(structure={str(i): [] for i in range(99)}), "more than the limit of 64"),
        (_router(structure=BOTH), "no SpladePooling or SparseStaticEmbedding module"),
        (_router(structure={"query": [], "doc": []}, parameters={}),
         "no text reaches the route 'doc'"),
        (_router(types={"../x": "a.Transformer"}), "leads out of the model folder"),
        (_router(types={"x": 7}), "types.'x' must be the name of a class"),
        (_router(further=1), f"{ROUTER}: further"),
        (_parameters(default_route="other"), "default_route must be one of 'query', 'document'"),
        (_parameters(default_route=7), "default_route"),
        (_parameters(temperature=2), f"{ROUTER}: temperature"),
        (_parameters(route_mappings={"query": "query"}), "route_mappings must be keyed by a task"),
        (_parameters(route_mappings={"(1, 'text')": "query"}), "route_mappings must be keyed"),
        (_parameters(route_mappings={"__import__('os')": "query"}), "route_mappings must be keyed"),
        (_parameters(route_mappings={"(" * 300: "query"}), "route_mappings must be keyed"),
        (_parameters(route_mappings={"(" * 200: "query"}), "route_mappings must be keyed"),
        (_parameters(route_mappings={"('query', None)": "x"}), "route_mappings must be to some of"),
        (_kind("sentence_transformers.models.Router"), "must hold the routes of Router"),
        (_kind("sentence_transformers.models.Bow"), "_SpladePooling' 'Bow' is not supported"),
        (_kind("mine.SpladePooling"), "'mine.SpladePooling' is code of the model's own"),
        (lambda f: (f / "query_0_SparseStaticEmbedding/model.safetensors").unlink(),
         "must hold the weights of tokens"),
    ],
)  # fmt: skip
def test_broken_folders(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    """A broken folder is refused with one line that says what is wrong."""
    folder = copy_fixture("router-splade", tmp_path)
    change(folder)
    with pytest.raises(ModelError) as caught:
        read_folder(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vectors_that_cannot_be_compared(tmp_path: Path) -> None:
    """Routes with vectors of different sizes are refused, with what to do."""
    folder = copy_fixture("router-mixed", tmp_path)
    values = json.loads((folder / ROUTER).read_text())
    values["structure"]["long"].pop()
    (folder / ROUTER).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="dimensions of the route 'short' is 16, and of 'long' 32"):
        read_folder(folder)


def test_a_route_that_scores_pairs(tmp_path: Path) -> None:
    """A route without a vector for a text is refused."""
    folder = copy_fixture("router-mixed", tmp_path)
    values = json.loads((folder / ROUTER).read_text())
    values["structure"] = {"short": values["structure"]["short"], "long": ["long_0_Transformer"]}
    (folder / ROUTER).write_text(json.dumps(values))
    (folder / "modules.json").write_text(
        json.dumps(json.loads((folder / "modules.json").read_text())[:1])
    )
    with pytest.raises(ModelError, match="has no Pooling module"):
        read_folder(folder)


def test_settings_for_encoders() -> None:
    """They are for the routes with an encoder, where there is one."""
    found = read_folder(FIXTURES / "router-splade", ModelOverrides(weight_type=WeightType.INT8))
    assert found.by_route["document"].weight_type is WeightType.INT8
    assert found.by_route["query"].weight_type is WeightType.FLOAT32


def test_the_fingerprint_is_of_all_routes(tmp_path: Path) -> None:
    """Another weight in any route, or another choice of routes, makes another fingerprint."""
    folder = copy_fixture("asym-dense", tmp_path)

    def fingerprint() -> str:
        files = resolve(str(folder))
        found = read_routes(files)
        hashes = {
            name: prepare(files, route, cache_dir=tmp_path / "cache").content_hash
            for name, route in found.by_route.items()
        }
        return hash_routes(hashes, found.by_role)

    router = folder / "2_Router"
    seen = {fingerprint()}
    edit_json(router / "config.json", parameters={"default_route": "document"})
    seen.add(fingerprint())
    weights = router / "query_0_Dense" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    seen.add(fingerprint())
    assert len(seen) == 3


def test_one_way_for_all() -> None:
    """A model without a router has one route, and its fingerprint is the route's."""
    found = read_folder(FIXTURES / "bert-mean")
    assert not found.has_router
    assert found.by_role == {None: ""}
    assert found.common is found.first
    assert hash_routes({"": "x"}, found.by_role) == "x"


@pytest.mark.parametrize("name", NAMES)
def test_inspect(name: str, cache_dir: Path) -> None:
    """The command prints the routes, and the properties of each under its name."""
    done = embedgrpc("inspect", FIXTURES / name, "--json", "--cache-dir", cache_dir)
    assert (done.code, done.err) == (0, "")
    values = {key: one["value"] for key, one in json.loads(done.out).items()}
    found = read_folder(FIXTURES / name)
    chosen = {role or "no input_type": route for role, route in found.by_role.items()}
    assert values["route"] == chosen
    assert values["rerank_method"] == "similarity"
    for route, read_properties in found.by_route.items():
        assert values[f"{route}.max_tokens"] == read_properties.max_tokens
        assert values[f"{route}.graph"] == "built"


def test_verify(cache_dir: Path) -> None:
    """The command checks every route."""
    done = embedgrpc("verify", FIXTURES / "router-splade", "--cache-dir", cache_dir)
    assert done.code == 0
    names = {line[:19].strip() for line in done.out.splitlines()}
    assert {"query: batched", "query: padded", "document: batched", "document: padded"} <= names


def test_triton_does_not_run_it(tmp_path: Path) -> None:
    """No repository is written for it, and a server's model has one route."""
    served = ServedTokenOutputs(token_weights=True, token_vectors=False, vector_dimensions=0)
    with pytest.raises(ModelError, match="served by embedgrpc alone and not on Triton"):
        read(resolve(str(FIXTURES / "router-splade")), served=served)
    done = embedgrpc(
        *("triton-repo", FIXTURES / "router-splade", tmp_path / "repository"),
        *("--cache-dir", tmp_path / "graphs"),
    )
    assert done.code == 1
    assert "several routes, which are not run on Triton" in done.err


def test_routes_that_name_routers_often(tmp_path: Path) -> None:
    """Four small files do not make a text pass 16 million modules."""
    _write(tmp_path, [])
    folder = tmp_path
    for name in ("r", "r", "r", "a"):
        _write_inner(folder, {"text": [name] * 64})
        folder /= name
    with pytest.raises(ModelError, match="a text would pass more than 64 modules and routers"):
        read_routing(tmp_path)


@pytest.mark.parametrize("name", ["router-splade", "router-mixed"])
def test_an_adapter_is_for_the_routes_with_an_encoder(tmp_path: Path, name: str) -> None:
    """A table of another route has no weights to merge it into."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(FIXTURES / "lora-qwen3" / file, adapter / file)
    files = resolve(str(FIXTURES / name), str(adapter))
    found = read_routes(files, ModelOverrides(adapter=str(adapter)))
    assert sorted(route.adapter is not None for route in found.by_route.values()) == [False, True]
