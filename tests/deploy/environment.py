"""The schemas of Kubernetes: `python -m tests.deploy.environment` installs them.

Those of Kubernetes itself are in a Python package, in a form that refers to an address; kubeconform
wants files. Those of KEDA and of Prometheus' operator are in npm packages, as programs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".cache" / "deploy"
# The oldest one that the chart allows, and a current one.
KUBERNETES_VERSIONS = ("1.29.0", "1.37.0")
_SCHEMAS = "kubernetes-validate==1.37.0"
_MODELS = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0")
_STAMP = "\n".join((_SCHEMAS, *_MODELS, *KUBERNETES_VERSIONS))


class EnvironmentMissingError(Exception):
    """The environment is missing; one line says what to do."""


def find() -> Path:
    """Return the folder with the schemas.

    Raises:
        EnvironmentMissingError: They are not installed.
    """
    stamp = PLACE / "installed"
    if not stamp.exists() or stamp.read_text("utf-8") != _STAMP:
        raise EnvironmentMissingError("no schemas of Kubernetes: run `uv run poe deploy-schemas`")
    return PLACE


def install() -> None:
    """Install the schemas, unless they are installed.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed; the installer has printed why.
    """
    try:
        find()
    except EnvironmentMissingError:
        shutil.rmtree(PLACE, ignore_errors=True)
    else:
        return
    PLACE.mkdir(parents=True)
    package = PLACE / "package"
    subprocess.run(
        [os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--no-deps",
         "--python", sys.executable, "--target", str(package), _SCHEMAS],
        check=True,
    )  # fmt: skip
    for version in KUBERNETES_VERSIONS:
        source = package / f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict"
        target = PLACE / "schemas" / f"v{version}"
        target.mkdir(parents=True)
        for path in source.glob("*.json"):
            text = path.read_text("utf-8").replace('"/api/_definitions.json', '"_definitions.json')
            (target / path.name).write_text(_without_address(text), "utf-8")
    shutil.rmtree(package)
    if shutil.which("npm") is not None:
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run([*command, "--prefix", str(PLACE / "node"), *_MODELS], check=True)
    # Last, so that an interrupted installation does not count.
    (PLACE / "installed").write_text(_STAMP, "utf-8")


def _without_address(text: str) -> str:
    """Leave out the address of a schema, against which its references would be resolved."""
    schema = json.loads(text)
    schema.pop("$id", None)
    return json.dumps(schema)


if __name__ == "__main__":
    install()
