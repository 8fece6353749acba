"""The chart, as Helm renders it and as Kubernetes' own schemas read it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedgrpc.server.settings.configuration import configure
from embedgrpc.server.settings.settings import Settings
from tests.deploy.environment import (
    KUBERNETES_VERSIONS,
    PLACE,
    ROOT,
    EnvironmentMissingError,
    find,
)
from tests.deploy.manifests import CHART, FILES, FOLDER, find_program, make, render

pytestmark = pytest.mark.long

VALUES = ["", *sorted(path.name for path in (CHART / "ci").iterdir())]
SETTINGS = {f"EMBEDGRPC_{name.upper()}" for name in Settings.model_fields} | {"EMBEDGRPC_CONFIG"}
Resource = dict[str, Any]


@pytest.fixture(scope="module")
def helm() -> str:
    """The program; the checks install it where Go is present."""
    program = find_program("helm")
    if program is None:
        if os.environ.get("CI") and shutil.which("go"):
            pytest.fail("helm is missing although Go could have installed it")
        pytest.skip("helm is not installed")
    return program


@pytest.fixture(scope="module")
def schemas() -> Path:
    """The folder with the schemas of Kubernetes; the checks install them."""
    try:
        return find()
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


def _values(name: str) -> list[str]:
    return ["--values", str(CHART / "ci" / name)] if name else []


def _resources(helm: str, *arguments: str) -> list[Resource]:
    return [one for one in yaml.safe_load_all(render(helm, *arguments)) if one]


def _find(resources: list[Resource], kind: str, name: str = "embedgrpc") -> Resource:
    (found,) = [one for one in resources if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def _server(resources: list[Resource]) -> Resource:
    (server,) = _find(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    found: Resource = server
    return found


def _refusal(helm: str, *settings: str) -> str:
    values = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(helm, *values)
    return str(caught.value.stderr)


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_to_complain(name: str, helm: str) -> None:
    """`helm lint --strict`, with each set of values."""
    command = [helm, "lint", "--strict", "--kube-version", KUBERNETES_VERSIONS[0], str(CHART)]
    done = subprocess.run([*command, *_values(name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_knows_every_field(version: str, helm: str, schemas: Path) -> None:
    """kubeconform, with the schemas that allow no other fields, old and new."""
    program = find_program("kubeconform")
    if program is None:
        pytest.skip("kubeconform is not installed")
    file = "{{ .NormalizedKubernetesVersion }}/{{ .ResourceKind }}{{ .KindSuffix }}.json"
    location = str(schemas / "schemas" / file)
    made = [render(helm, *_values(name), version=version) for name in VALUES]
    done = subprocess.run(
        [program, "-strict", "-summary", "-output", "json", "-kubernetes-version", version,
         "-skip", "ScaledObject,ServiceMonitor", "-schema-location", location],
        input="\n---\n".join(made),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert (done.returncode, result["summary"]["errors"]) == (0, 0), result
    assert result["summary"]["valid"] >= 5 * len(VALUES)


@pytest.mark.parametrize("name", ["secured-values.yaml", "gpu-values.yaml"])
def test_operators_know_their_resources(name: str, helm: str, schemas: Path) -> None:
    """The schemas of KEDA and of Prometheus' operator take what the chart makes for them."""
    if not (schemas / "node").exists():
        pytest.skip("npm is not installed")
    kinds = ("ScaledObject", "ServiceMonitor")
    made = [one for one in _resources(helm, *_values(name)) if one["kind"] in kinds]
    assert made
    program = (ROOT / "tests/deploy/crds.mjs").read_text("utf-8")

    def check(resources: list[Resource]) -> list[str]:
        done = subprocess.run(
            [shutil.which("node") or "node", "--input-type=module", "--eval", program],
            cwd=PLACE / "node",
            input=json.dumps(resources),
            capture_output=True,
            text=True,
            check=True,
        )
        found: list[str] = json.loads(done.stdout)
        return found

    assert check(made) == []
    # What checks nothing would find nothing either.
    assert check([{**one, "spec": {}} for one in made])


@pytest.mark.parametrize("name", VALUES)
def test_the_server_takes_its_configuration(name: str, helm: str, tmp_path: Path) -> None:
    """Every variable is a setting, and the file says what the values say."""
    resources = _resources(helm, *_values(name))
    variables = {one["name"]: one.get("value") for one in _server(resources)["env"]}
    ours = {key for key in variables if key.startswith("EMBEDGRPC_")}
    assert ours - SETTINGS == set()
    file = tmp_path / "config.toml"
    file.write_text(_find(resources, "ConfigMap")["data"]["config.toml"], "utf-8")
    read = configure({}, file).settings
    values = yaml.safe_load((CHART / "ci" / name).read_text("utf-8")) if name else {}
    for key, value in values.get("settings", {}).items():
        assert getattr(read, key) == value
    assert [model.id for model in read.models] == [one["id"] for one in values.get("models", [])]
    if "triton" not in values:
        for model, given in zip(read.models, values.get("models", []), strict=True):
            assert model.source == given["source"]
            assert model.prompts == given.get("prompts", {})
            assert list(model.aliases) == given.get("aliases", [])


@pytest.mark.parametrize("name", VALUES)
def test_every_container_is_confined(name: str, helm: str) -> None:
    """No root, no capabilities, no token of the cluster; our own image is read-only."""
    pod = _find(_resources(helm, *_values(name)), "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        if container["name"] != "triton":
            assert context["readOnlyRootFilesystem"] is True
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"]["memory"]


def test_probes_and_services_reach_the_ports(helm: str) -> None:
    """Each port that is named somewhere is one of the server's, where it listens."""
    resources = _resources(helm, "--set", "http.enabled=true")
    server = _server(resources)
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    listens = {
        one["name"].removeprefix("EMBEDGRPC_"): int(one["value"].rpartition(":")[2])
        for one in server["env"]
        if one["name"].endswith("ADDRESS")
    }
    assert listens == {
        "ADDRESS": ports["grpc"],
        "HEALTH_ADDRESS": ports["probes"],
        "HTTP_ADDRESS": ports["http"],
        "METRICS_ADDRESS": ports["metrics"],
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["grpc"]["port"] == ports["probes"]
    assert "service" not in server["livenessProbe"]["grpc"]
    labels = _find(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for one in resources:
        if one["kind"] == "Service":
            assert one["spec"]["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports.keys()
    policy = _find(resources, "NetworkPolicy")["spec"]
    allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert allowed == {"grpc", "http", "metrics"}


def test_a_pod_has_time_to_stop(helm: str) -> None:
    """It is killed after the server's own limit, whatever that is set to."""
    for limit_s, arguments in ((30, []), (45, _values("models-values.yaml"))):
        pod = _find(_resources(helm, *arguments), "Deployment")["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == limit_s + 5
    assert Settings().shutdown_timeout_s == 30


def test_a_gpu_goes_to_what_runs_the_model(helm: str) -> None:
    """The server, in the image for it; with Triton beside it, Triton."""
    alone = _find(_resources(helm, "--set", "gpu.enabled=true"), "Deployment")
    (server,) = alone["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server["image"].endswith("-cuda")
    beside = _find(_resources(helm, *_values("triton-sidecar-values.yaml")), "Deployment")
    pod = beside["spec"]["template"]["spec"]
    writer, triton = pod["initContainers"]
    (server,) = pod["containers"]
    assert (writer["name"], "--kind=gpu" in writer["args"]) == ("repository", True)
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in server["resources"]["limits"]
    assert server["image"].endswith("-cpu")


def test_triton_serves_what_the_init_container_writes(helm: str, tmp_path: Path) -> None:
    """Its file has the models' keys, its arguments their ids, and the server names those."""
    resources = _resources(helm, *_values("triton-sidecar-values.yaml"))
    files = _find(resources, "ConfigMap")["data"]
    (tmp_path / "repository.toml").write_text(files["repository.toml"], "utf-8")
    (model,) = configure({}, tmp_path / "repository.toml").settings.models
    assert (model.id, model.prompts) == ("small", {"query": "query: "})
    (tmp_path / "config.toml").write_text(files["config.toml"], "utf-8")
    (served,) = configure({}, tmp_path / "config.toml").settings.models
    assert (served.source, served.aliases) == ("triton:127.0.0.1:8001/small", ("bge",))
    pod = _find(resources, "Deployment")["spec"]["template"]["spec"]
    writer, triton = pod["initContainers"]
    assert writer["args"][-2:] == ["small", "/data/repository"]
    assert triton["restartPolicy"] == "Always"
    assert "--model-repository=/data/repository" in triton["command"]


def test_scaling_is_by_queued_work(helm: str) -> None:
    """Neither autoscaler leaves a number of replicas in the deployment."""
    by_kubernetes = _resources(helm, *_values("secured-values.yaml"))
    (metric,) = _find(by_kubernetes, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"] == {
        "metric": {"name": "embedgrpc_queue_work_seconds"},
        "target": {"type": "AverageValue", "averageValue": "0.5"},
    }
    by_keda = _resources(helm, *_values("gpu-values.yaml"))
    (trigger,) = _find(by_keda, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        'sum(embedgrpc_queue_work_seconds{namespace="embedgrpc", service="embedgrpc-metrics"})'
    )
    assert "`embedgrpc_queue_work_seconds`" in (ROOT / "docs/metrics.md").read_text("utf-8")
    for resources in (by_kubernetes, by_keda):
        assert "replicas" not in _find(resources, "Deployment")["spec"]
    assert _find(_resources(helm), "Deployment")["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["imgae.tag=x"], "imgae"),
        (["service.ports.grcp=1"], "grcp"),
        (["triton.mode=on"], "/triton/mode"),
        (["replicaCount=two"], "/replicaCount"),
        (["settings.address=0.0.0.0:1"], "settings.address"),
        (["keda.enabled=true"], "keda.prometheusAddress"),
        (["keda.enabled=true", "autoscaling.enabled=true"], "choose one"),
        (["autoscaling.enabled=true", "metrics.enabled=false"], "metrics.enabled"),
        (["tls.clientCaSecretName=x"], "tls.secretName"),
        (["triton.mode=sidecar"], "models is empty"),
        (["triton.mode=sidecar", "models[0].source=hf:a/b"], "models[0].id"),
        (["triton.mode=service", "models[0].source=s", "models[0].id=a"], "triton.address"),
    ],
)
def test_wrong_values_are_refused_by_name(settings: list[str], named: str, helm: str) -> None:
    """Misspelt keys, wrong types, and values that do not go together."""
    assert named in _refusal(helm, *settings)


@pytest.mark.parametrize("name", FILES)
def test_the_manifests_are_those_of_the_chart(name: str, helm: str) -> None:
    """Making them again changes nothing."""
    kept = (FOLDER / name).read_text("utf-8")
    assert kept == make(helm, name), "run: uv run python -m tests.deploy.manifests"
    assert not re.search(r"helm\.sh|Helm\b", kept.partition("---")[2])
