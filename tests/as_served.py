"""Prepares the tests' process as `embedgrpc serve` prepares its own.

Loaded before all else: ONNX Runtime and gRPC's core read their environment once.
"""

from embedgrpc.libraries.silence import send_nothing
from embedgrpc.server.process.grpc_core import prepare_core

send_nothing()
prepare_core(trusted_network=False)
