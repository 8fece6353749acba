"""The contract as Envoy's JSON transcoder reads it.

uv run python -m tests.envoy.descriptor     writes deploy/envoy/embedgrpc.binpb

It contains the details of errors too: without them, an error has no body as JSON.
"""

import subprocess
import sys
from pathlib import Path

from google.rpc import status_pb2

from tests.envoy.environment import ROOT

FILE = ROOT / "deploy/envoy/embedgrpc.binpb"


def make(file: Path) -> None:
    """Write the descriptor into a file."""
    google = Path(status_pb2.__file__).parents[2]
    protos = ROOT / "protos"
    ours = sorted(str(path.relative_to(protos)) for path in protos.glob("embedgrpc/v1/*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}",
         f"--proto_path={google}", "--include_imports", f"--descriptor_set_out={file}",
         *ours, "google/rpc/status.proto", "google/rpc/error_details.proto"],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    make(FILE)
