"""Makes servers inside of the tests' process read connections as `embedgrpc serve` does.

Loaded before all else: gRPC's core reads its environment once.
"""

from embedgrpc.server.grpc_core import prepare_core

prepare_core(trusted_network=False)
