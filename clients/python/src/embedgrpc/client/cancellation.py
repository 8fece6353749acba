"""Tells a call that was ended here from a task that was cancelled.

grpc.aio raises `asyncio.CancelledError` for both. A task that nobody cancelled must not see it:
who waits for the task would take it for cancelled.
"""

import asyncio

import grpc

from embedgrpc.client.errors import EmbedGrpcError


def is_task_cancelled() -> bool:
    """Return whether somebody asked to cancel the current task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def ended_here_error() -> EmbedGrpcError:
    """Return the error of a call that was in flight when its client or stream was closed."""
    return EmbedGrpcError(
        "the client or the stream was closed before the answer", code=grpc.StatusCode.CANCELLED
    )
