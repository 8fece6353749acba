"""Prepares the tests' process as `embedgrpc serve` prepares its own.

Loaded before all else: ONNX Runtime and gRPC's core read their environment once.
"""

from embedgrpc.libraries.silence import send_nothing
from embedgrpc.server.grpc_core import read_on_one_thread

send_nothing()
read_on_one_thread()
