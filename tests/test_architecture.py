import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.rpc.errors import status_code
from embedgrpc.v1 import common_pb2

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = (ROOT / "src", ROOT / "clients/python/src")
SOURCES = {
    ".".join(path.relative_to(folder).with_suffix("").parts): path
    for folder in DISTRIBUTIONS
    for path in folder.rglob("*.py")
    if "v1" not in path.parts
}
PROTOS = sorted(path.relative_to(ROOT / "protos") for path in (ROOT / "protos").rglob("*.proto"))

# What each package may import from the others: only what lies below it.
MAY_IMPORT = {
    "embedgrpc.cli": (
        "embedgrpc.server",
        "embedgrpc.engine",
        "embedgrpc.models",
        "embedgrpc.triton_repository",
        "embedgrpc.libraries",
        "embedgrpc.machine",
        # `health` asks a server.
        "embedgrpc.client",
    ),
    "embedgrpc.server": (
        "embedgrpc.libraries",
        "embedgrpc.machine",
        "embedgrpc.engine",
        "embedgrpc.models",
        "embedgrpc.backends.base",
        "embedgrpc.v1",
        "embedgrpc.tei",
    ),
    "embedgrpc.engine": (
        "embedgrpc.libraries.arrays",
        "embedgrpc.models",
        "embedgrpc.machine",
        "embedgrpc.backends.base",
    ),
    # Writes the folder from which a Triton server loads models. Apart from `backends.triton`, which
    # calls such a server and knows no models, and from `models`, which knows no protobuf.
    "embedgrpc.triton_repository": ("embedgrpc.models",),
    "embedgrpc.models": ("embedgrpc.libraries", "embedgrpc.machine"),
    "embedgrpc.backends": ("embedgrpc.libraries", "embedgrpc.machine"),
    "embedgrpc.libraries": (),
    "embedgrpc.machine": (),
    "embedgrpc.client": ("embedgrpc.v1",),
}
# The rooms and files of each package, from the top floor down. Imports point down the list.
FLOORS = {
    "embedgrpc.server": (
        "process",
        "http",
        "kserve",
        "tei",
        "services",
        "calls",
        "identity",
        "rates",
        "connections",
        "telemetry",
        "loading",
        "caller",
        "contract",
        "rpc",
        "settings",
    ),
    "embedgrpc.engine": (
        "tasks",
        "pipeline",
        "scheduling",
        "work",
        "tokenizing",
        "admission",
        "results",
        "work_class",
        "errors",
    ),
    "embedgrpc.models": (
        "validation",
        "remote",
        "graphs",
        "tokenizers",
        "folder",
        "sources",
        "tensors",
        "files",
        "kinds",
        "progress",
        "errors",
    ),
    "embedgrpc.client": (
        "cli",
        "cli_commands",
        "cli_arguments",
        "cli_bulk_arguments",
        "cli_evaluate_arguments",
        "cli_numbers",
        "engines",
        "batch_types",
        "evaluate",
        "bulk",
        "integrations",
        "__init__",
        "public",
        "client",
        "async_client",
        "client_encode",
        "async_client_encode",
        "client_api",
        "encode_api",
        "readiness",
        "long_ranking",
        "vector_array",
        "databases",
        "similarity",
        "progress_bar",
        "async_stream",
        "stream",
        "embed_state",
        "classify_state",
        "rerank_state",
        "batch_state",
        "stream_state",
        "unary_calls",
        "channel",
        "targets",
        "attempts",
        "concurrency",
        "proxies",
        "tls_files",
        "call_credentials",
        "decoding",
        "classifications",
        "result_types",
        "text_parts",
        "model_description",
        "server_status",
        "server_description",
        "tokens",
        "vectors",
        "options",
        "inputs",
        "status_errors",
        "request_limit",
        "cancellation",
        "errors",
        "enums",
        "suggestions",
        "defaults",
    ),
    "embedgrpc.server.http": (
        "listener",
        "door",
        "body_size",
        "pieces",
        "acceptor",
        "connection",
        "pace",
        "protocol",
        "dialects",
        "openapi",
        "docs_page",
        "pair_scores",
        "work",
        "rows",
        "routing",
        "exchange",
        "cors",
        "spent",
        "fields",
        "numbers",
        "headers",
        "call",
        "failures",
        "peers",
    ),
    "embedgrpc.models.graphs": (
        "graph",
        "build",
        "identity",
        "content_hash",
        "stored_type",
        "merged_weights",
        "exports",
        "heads",
        "encoders",
        "weight_types",
        "probe",
        "output_sizes",
        "writer",
        "outputs",
        "external_tensors",
        "cache",
    ),
}
# Only these modules of the server name concrete backends.
COMPOSITION = (
    "embedgrpc.server.loading.loading",
    "embedgrpc.server.loading.triton",
    "embedgrpc.server.loading.triton_tls",
)
# What speaks of messages and of RPCs; `onnx_file` reads ONNX files, which are messages as well.
TRANSPORT = (
    "embedgrpc.v1",
    "grpc",
    "google.protobuf",
    "google.rpc",
    "grpc_health",
    "tritonclient",
)
# One backend is a client of another protocol, and one door is a server of it: nobody else sees its
# messages. Both take them from `tritonclient`, for a process can hold one copy of them only.
KSERVE = "embedgrpc.backends.triton"
KSERVE_DOOR = "embedgrpc.server.kserve"
SPEAK_TRANSPORT = ("embedgrpc.server", "embedgrpc.client", KSERVE)
# A model's configuration is a message that is written as text.
SPEAK_TRITON = {
    "embedgrpc.triton_repository.config": ("google.protobuf", "tritonclient.grpc"),
    "embedgrpc.triton_repository.execution": ("tritonclient.grpc",),
}
# Turns its telemetry off first.
ONNX_RUNTIME = "embedgrpc.libraries.onnx_runtime"
READS_ONNX = (
    "embedgrpc.models.graphs.exports.onnx_file",
    {"google.protobuf.descriptor", "google.protobuf.message"},
)
READ_ENVIRONMENT = {
    "embedgrpc.cli.first_call",
    "embedgrpc.cli.flags",
    # NO_COLOR and TERM, by which every program on a terminal goes.
    "embedgrpc.server.telemetry.logs",
    "embedgrpc.client.cli",
    # Keys, which workers have in their environment.
    "embedgrpc.client.engines",
    # Keys, which frameworks must not write down.
    "embedgrpc.client.integrations.keys",
    # Handed to another process, but for what is secret.
    "embedgrpc.models.validation.child_process",
    # Told to libraries that have no other settings.
    "embedgrpc.libraries.propagation",
    "embedgrpc.libraries.proxies",
    "embedgrpc.libraries.no_telemetry",
    "embedgrpc.server.settings.configuration",
    # Told to gRPC's core, which has no other settings of its own.
    "embedgrpc.server.process.grpc_core",
    # Handed to telemetry, whose variables are OpenTelemetry's.
    "embedgrpc.server.process.process",
    "embedgrpc.server.process.server",
}


def within(module: str, parts: tuple[str, ...]) -> bool:
    """Tells whether a module is one of the parts or lies in one."""
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert not node.level
            # `from a import b` may mean the module a.b or a name in the module a.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES or node.module.count(".") == 0 else node.module


def names_of_environment(tree: ast.AST) -> Iterator[int]:
    """The lines that touch the variables of the process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for one in node.names if one.name in ("environ", "getenv"))


@pytest.fixture(scope="module")
def modules() -> Mapping[str, ast.AST]:
    """The parsed source of each module, by its name."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in sorted(SOURCES.items())}


def test_imports_point_one_way(modules: Mapping[str, ast.AST]) -> None:
    """A part imports itself and what lies below it; one place names concrete backends."""
    for name, tree in modules.items():
        (part,) = (one for one in MAY_IMPORT if within(name, (one,)))
        allowed = (part, *MAY_IMPORT[part])
        if name in COMPOSITION:
            allowed += ("embedgrpc.backends",)
        if part == "embedgrpc.backends" and name.count(".") == 2:
            # The base knows nothing of those who implement it.
            allowed = (
                ("embedgrpc.libraries.arrays",) if name == "embedgrpc.backends.base" else allowed
            )
        ours = {one for one in imports_of(tree) if within(one, ("embedgrpc",))}
        assert not {one for one in ours if not within(one, allowed)}, name


@pytest.mark.parametrize("package", FLOORS)
def test_imports_point_down_the_floors(package: str) -> None:
    """Inside a package, a room imports itself and the rooms below it, so there is no circle."""
    floors = FLOORS[package]
    for name, path in SOURCES.items():
        if not within(name, (package,)):
            continue
        room = name.removeprefix(f"{package}.").split(".")[0]
        above = tuple(f"{package}.{one}" for one in floors[: floors.index(room)])
        upward = {
            one for one in imports_of(ast.parse(path.read_text("utf-8"))) if within(one, above)
        }
        assert not upward, name


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_is_on_a_floor(package: str) -> None:
    """The floors list what is there, and nothing else."""
    rooms = {
        name.removeprefix(f"{package}.").split(".")[0]
        for name in SOURCES
        if within(name, (package,))
    }
    assert rooms == set(FLOORS[package])


def test_transport_stays_at_the_edge(modules: Mapping[str, ast.AST]) -> None:
    """Messages and RPCs are known to the server and the client alone."""
    for name, tree in modules.items():
        known = {one for one in imports_of(tree) if within(one, TRANSPORT)}
        if name == READS_ONNX[0]:
            known -= READS_ONNX[1]
        known = {one for one in known if not within(one, SPEAK_TRITON.get(name, ()))}
        assert not known or within(name, SPEAK_TRANSPORT), name


def test_one_place_loads_onnx_runtime(modules: Mapping[str, ast.AST]) -> None:
    """Everything takes it from where its telemetry was turned off before it is loaded."""
    for name, tree in modules.items():
        loads = {one for one in imports_of(tree) if within(one, ("onnxruntime",))}
        assert not loads or name == ONNX_RUNTIME, name


def test_one_place_speaks_kserve(modules: Mapping[str, ast.AST]) -> None:
    """Triton's messages are known to its backend, and to the door, which alone knows ours too."""
    for name, tree in modules.items():
        imports = set(imports_of(tree))
        is_door = within(name, (KSERVE_DOOR,))
        speaks = is_door or within(name, (KSERVE,)) or name in SPEAK_TRITON
        assert speaks or not {one for one in imports if within(one, ("tritonclient",))}, name
        assert (
            is_door or not speaks or not {one for one in imports if within(one, ("embedgrpc.v1",))}
        ), name


def test_environment_is_read_in_few_places(modules: Mapping[str, ast.AST]) -> None:
    """Variables are read where settings are put together, and nowhere else."""
    for name, tree in modules.items():
        lines = list(names_of_environment(tree))
        assert bool(lines) == (name in READ_ENVIRONMENT), (name, lines)


def test_every_module_was_found() -> None:
    """The rules above look at every part of both distributions."""
    parts = {name.split(".")[1] for name in SOURCES}
    assert parts == {part.split(".")[1] for part in MAY_IMPORT}
    assert set(COMPOSITION) | READ_ENVIRONMENT | set(SPEAK_TRITON) <= set(SOURCES)


def test_namespace_has_no_init() -> None:
    """Two distributions share the package `embedgrpc`: neither may own its root."""
    for folder in DISTRIBUTIONS:
        assert (folder / "embedgrpc").is_dir()
        assert not list((folder / "embedgrpc").glob("*.py*"))


@pytest.mark.parametrize(
    "imported",
    [
        "embedgrpc.v1.embedding_service_pb2_grpc",
        "embedgrpc.client.public",
        "embedgrpc.client.cli_commands",
    ],
)
def test_client_imports_no_server(imported: str) -> None:
    """The stubs and the client bring in neither a model's libraries nor the server."""
    program = f"import json, sys, {imported}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = json.loads(done.stdout)
    assert imported in loaded
    unwanted = (
        "onnxruntime",
        "onnx",
        "tokenizers",
        "safetensors",
        "ml_dtypes",
        "pydantic",
        "opentelemetry",
        "embedgrpc.server",
        "embedgrpc.engine",
        "embedgrpc.models",
        "embedgrpc.backends",
    )
    assert not [one for one in loaded if within(one, unwanted)]


def test_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    """Generating the stubs again changes nothing, and none is left over."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for step in project["tool"]["poe"]["tasks"]["generate"]["sequence"]:
        if "_out=" not in step["cmd"]:
            continue  # the descriptor of Envoy, which has a test of its own
        # As poe reads it: the folder of the project, then patterns.
        words = shlex.split(step["cmd"].replace("${POE_ROOT}", str(ROOT)))
        files = [
            str(found)
            for word in words
            for found in (sorted(ROOT.glob(word)) if "*" in word else [word])
        ]
        command = [re.sub(r"(_out=).*", rf"\g<1>{tmp_path}", word) for word in files]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PATH": path})
    generated = {
        path.relative_to(tmp_path): path.read_text("utf-8") for path in tmp_path.rglob("*.py*")
    }
    kept = {
        path.relative_to(folder): path.read_text("utf-8")
        for folder, stubs in zip(DISTRIBUTIONS, ("embedgrpc/tei/v1", "embedgrpc/v1"), strict=True)
        for path in (folder / stubs).iterdir()
        if path.suffix in (".py", ".pyi")
    }
    assert len(kept) == 3 * len(PROTOS)
    assert kept == generated


def test_the_client_s_stubs_ask_for_no_newer_protobuf() -> None:
    """They run with protobuf 5 to 7: a stub that checks its own version runs with two of them."""
    stubs = list((DISTRIBUTIONS[1] / "embedgrpc/v1").glob("*_pb2.py"))
    assert stubs
    assert not [path.name for path in stubs if "runtime_version" in path.read_text("utf-8")]


def test_reasons_are_those_of_the_contract() -> None:
    """The engine's reasons and the enum of the contract name the same failures."""
    names = {name.removeprefix("ERROR_REASON_") for name in common_pb2.ErrorReason.keys()}  # noqa: SIM118 - an enum, no mapping
    assert {reason.value for reason in Reason} == names - {"UNSPECIFIED"}
    assert all(reason.name == reason.value for reason in Reason)


def leaves(of: type[EngineError]) -> Iterator[type[EngineError]]:
    """The classes without subclasses."""
    for one in of.__subclasses__():
        yield from leaves(one) if one.__subclasses__() else (one,)


def test_every_error_has_a_status() -> None:
    """Each class of failure has a reason of its own and, as each reason, a status."""
    classes = list(leaves(EngineError))
    assert len({one.reason for one in classes}) == len(classes) >= 11
    for one in classes:
        assert status_code(one("message")).value[0] > 0
    for reason in Reason:
        error = EngineError("message")
        error.reason = reason
        assert status_code(error).value[0] > 0


# These open files of a model's folder: all others go through the first, which has the one rule.
OPEN_MODEL_FILES = {
    "embedgrpc.models.files.model_file",
    # Libraries that take paths: each path was checked by the first.
    "embedgrpc.models.tensors.weights",
    "embedgrpc.models.tensors.torch_zip",
    "embedgrpc.models.graphs.exports.onnx_file",
    # Files of the cache, of this machine, and of this process.
    "embedgrpc.models.graphs.cache",
    "embedgrpc.models.graphs.writer",
    "embedgrpc.models.graphs.external_tensors",
    "embedgrpc.models.graphs.build",
    "embedgrpc.models.graphs.weight_types.matmuls",
    "embedgrpc.models.graphs.weight_types.float16",
    "embedgrpc.models.graphs.weight_types.int8",
    "embedgrpc.models.graphs.weight_types.calibration",
    "embedgrpc.machine.memory",
    "embedgrpc.models.validation.child_process",
}
_OPENS = {"open", "read_bytes", "read_text", "from_file", "memmap", "ZipFile", "safe_open"}


def test_one_place_opens_the_files_of_a_model(modules: Mapping[str, ast.AST]) -> None:
    """No other module of `models` opens a file, so that the one rule holds for all."""
    for name, tree in modules.items():
        if not within(name, ("embedgrpc.models",)):
            continue
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        opened = {
            called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            for called in calls
        } & _OPENS
        assert not opened or name in OPEN_MODEL_FILES, name
