"""Plain manifests made from the chart, for clusters without Helm.

uv run python -m tests.deploy.manifests     writes them into deploy/kubernetes
"""

import os
import re
import shutil
import subprocess

from tests.deploy.environment import KUBERNETES_VERSIONS, ROOT

CHART = ROOT / "deploy/helm/embedgrpc"
FOLDER = ROOT / "deploy/kubernetes"
# Each file, and the values it is made with.
FILES = {"embedgrpc.yaml": (), "embedgrpc-gpu.yaml": ("gpu.enabled=true",)}
_HEAD = """\
# {name}: made from deploy/helm/embedgrpc by `uv run python -m tests.deploy.manifests`.
#
#   kubectl create namespace embedgrpc
#   kubectl apply --namespace embedgrpc --filename deploy/kubernetes/{name}
#
# Replace the image by the one in your registry.
"""


def find_program(name: str) -> str | None:
    """Return a program that the checks install where Go is present."""
    return shutil.which(name, path=f"{ROOT / '.cache/bin'}{os.pathsep}{os.environ['PATH']}")


def render(helm: str, *arguments: str, version: str = KUBERNETES_VERSIONS[-1]) -> str:
    """Return what the chart makes, as YAML.

    Raises:
        subprocess.CalledProcessError: It refuses the values; `stderr` says why.
    """
    done = subprocess.run(
        [helm, "template", "embedgrpc", str(CHART), "--namespace", "embedgrpc",
         "--kube-version", version, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def make(helm: str, name: str) -> str:
    """Return a manifest without what only Helm reads."""
    values = [word for value in FILES[name] for word in ("--set", value)]
    text = re.sub(r"^# Source: .*\n", "", render(helm, *values), flags=re.MULTILINE)
    text = re.sub(
        r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE
    )
    return _HEAD.format(name=name) + text


def main() -> None:
    """Write every manifest."""
    helm = find_program("helm")
    if helm is None:
        raise SystemExit("helm is not installed")
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / name).write_text(make(helm, name), "utf-8")


if __name__ == "__main__":
    main()
