"""The difference between a task that was cancelled and a call whose client was closed.

grpc.aio raises `asyncio.CancelledError` for both. A task that was not cancelled must not raise
it: a caller that awaits the task would take the task for cancelled.
"""

import asyncio

import grpc

from embedgrpc.client.errors import EmbedGrpcError


def is_task_cancelled() -> bool:
    """Return whether `cancel()` was called on the current task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def closed_error() -> EmbedGrpcError:
    """Return the error of a call that was in flight when its client or stream was closed."""
    return EmbedGrpcError(
        "the client or the stream was closed before the response", code=grpc.StatusCode.CANCELLED
    )
