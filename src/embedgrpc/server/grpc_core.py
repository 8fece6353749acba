"""What gRPC's core is told by its environment, which it reads once, when it is loaded."""

import os


def read_on_one_thread() -> None:
    """Makes gRPC's core read connections on the thread that waits for calls.

    Its event engine reads on a pool of threads, and so wakes two more of them for every call: a
    quarter of what gRPC costs a server whose calls all end up on one event loop. Whoever sets
    `GRPC_EXPERIMENTS` has said what is wanted. To be called before `grpc` is imported.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
