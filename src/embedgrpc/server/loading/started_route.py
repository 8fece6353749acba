"""Starts the threads of a route: its queue, its tokenizer and what runs its batches."""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.pipeline import Pipeline
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.server.loading.prepared_model import PreparedModel
from embedgrpc.server.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class StartedRoute:
    """A route of a model whose threads run.

    Attributes:
        text_tokenizer: Tokenizes without running the model.
        max_characters: Most characters of a text; a longer one is cut or refused.
    """

    prepared: PreparedModel
    pipeline: Pipeline
    scheduler: Scheduler
    admission: Admission
    text_tokenizer: TextTokenizer
    max_characters: int


def start_route(
    prepared: PreparedModel,
    settings: Settings,
    *,
    model_id: str,
    observers: Iterable[BatchObserver],
    resources: ExitStack,
    loop: asyncio.AbstractEventLoop,
) -> StartedRoute:
    """Start the threads of a route.

    Args:
        prepared: The route.
        settings: The settings of the server.
        model_id: The name of the model, for threads and reports.
        observers: Receive a report of every batch.
        resources: Stops the threads; that blocks.
        loop: Receives the results.
    """
    tokens = settings.batch_tokens or prepared.batch_tokens
    admission = Admission(
        max_inputs=settings.max_queued_inputs,
        max_tokens=settings.max_queued_tokens,
        batch_tokens=tokens,
        max_queue_s=settings.max_queue_s,
        weights=settings.caller_weights,
    )
    budget = BatchBudget(
        tokens=tokens,
        sequences=min(
            settings.batch_sequences, prepared.batch_sequences or settings.batch_sequences
        ),
        overhead_tokens=prepared.overhead_tokens,
    )
    scheduler = Scheduler(
        model=model_id,
        backend=prepared.backend,
        budget=budget,
        bulk_batch_s=settings.bulk_batch_ms / 1000,
        weights=settings.caller_weights,
        pad_token_id=prepared.properties.pad_token_id,
        pad_left=prepared.properties.padding_side == "left",
        admission=admission,
        observers=observers,
        loop=loop,
    )
    resources.callback(scheduler.close)
    if prepared.availability is not None:
        # Closed before the scheduler, whose lanes may wait for a server that never answers.
        resources.callback(prepared.backend.close)
    tokenizing = TokenizingThreads(
        prepared.tokenizer, threads=settings.tokenizer_threads, name=model_id
    )
    resources.callback(tokenizing.close)
    locating = None
    if prepared.tokenizer.locator is not None:
        locating = TokenizingThreads(
            prepared.tokenizer.locator, threads=1, name=f"{model_id}-places"
        )
        resources.callback(locating.close)
    max_characters = settings.max_characters_per_token * prepared.properties.max_tokens
    return StartedRoute(
        prepared=prepared,
        pipeline=Pipeline(
            admission=admission, tokenizing=tokenizing, scheduler=scheduler, locating=locating
        ),
        scheduler=scheduler,
        admission=admission,
        text_tokenizer=TextTokenizer(
            prepared.tokenizer,
            counting=tokenizing,
            locating=locating,
            max_characters=max_characters,
        ),
        max_characters=max_characters,
    )
