"""Prepares the tests' process as `embedgrpc serve` prepares its own.

Loaded before all else: ONNX Runtime and gRPC's core read their environment once.
"""

from embedgrpc.libraries.no_telemetry import disable_telemetry
from embedgrpc.server.process.grpc_core import prepare_core

disable_telemetry()
prepare_core(trusted_network=False)
