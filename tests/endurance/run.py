"""One run: a server on a socket, clients of every kind, and then the accounts."""

import asyncio
import time
from contextlib import AsyncExitStack

import uvloop

from tests.endurance.clients import Caller
from tests.endurance.ending import Household, check_fates, check_nothing_is_left
from tests.endurance.findings import Findings
from tests.endurance.ledger import Ledger
from tests.endurance.plan import Plan, Summary
from tests.endurance.progress import Progress, rss_mb
from tests.endurance.texts import TextSource, Vocabulary
from tests.endurance.trial import CALLER_KEY, Trial
from tests.endurance.watching import watched_engines
from tests.server.service import serving, settings_for

# Small, so that every one of them is met again and again.
LIMITS = {
    "batch_tokens": 512,
    "batch_sequences": 24,
    "max_inputs": 64,
    "max_queue_s": 0.2,
    "max_stream_in_flight_inputs": 128,
    "max_stream_batch_inputs": 32,
    "tokenizer_threads": 2,
    # So the health checks run through the same queue, beside what fails, and must not notice.
    "health_interval_s": 0.25,
}
# For each input that may be queued: of long texts the tokens are the bound, of short ones the
# inputs.
_QUEUED_TOKENS = 40
_CONNECTIONS = 8
_NARROW_CONNECTIONS = 4
_NARROW_WINDOW_BYTES = 4096
_RSS_GROWTH_MB_MAX = 64.0
_SERVING = 1


def run(plan: Plan) -> Summary:
    """Run the plan, and return its outcome."""
    # The event loop that the server has in production.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve_and_call(plan))


async def _serve_and_call(plan: Plan) -> Summary:
    findings = Findings()
    ledger = Ledger(findings)
    vocabulary = Vocabulary()
    backend = plan.backend(
        vocabulary=vocabulary,
        ledger=ledger,
        findings=findings,
        lanes=plan.lanes,
        lanes_compete=plan.lanes_compete,
    )
    settings = settings_for(
        cache_dir=plan.cache_dir,
        caller_metadata=CALLER_KEY,
        max_queued_inputs=plan.queued_inputs_max,
        max_queued_tokens=plan.queued_inputs_max * _QUEUED_TOKENS,
        **LIMITS,
    )
    async with AsyncExitStack() as resources:
        resources.enter_context(findings.watching_process())
        resources.enter_context(watched_engines(ledger, findings))
        service = await resources.enter_async_context(serving(settings, backend.open))
        backend.judge()
        trial = Trial(
            service=service,
            loaded=next(iter(service.server.catalog)).ready(),
            clients=[await service.connect() for _ in range(_CONNECTIONS)],
            narrow_clients=[
                await service.connect(
                    grpc__http2__lookahead_bytes=_NARROW_WINDOW_BYTES, grpc__http2__bdp_probe=0
                )
                for _ in range(_NARROW_CONNECTIONS)
            ],
            source=TextSource(vocabulary),
            ledger=ledger,
            findings=findings,
            items_max=plan.items,
            ends_at=time.monotonic() + plan.seconds_max,
        )
        return await _carry_out(plan, trial)


async def _carry_out(plan: Plan, trial: Trial) -> Summary:
    service = trial.service
    for client in trial.clients + trial.narrow_clients:
        await client.status("embedgrpc.v1.EmbeddingService")
    before = Household.of(trial)
    began = time.monotonic()
    progress = Progress(plan, trial)
    watching = asyncio.create_task(progress.watch())
    callers = [Caller(trial, number, plan.seed) for number in range(plan.callers)]
    await asyncio.gather(*(caller.run() for caller in callers))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    seconds = time.monotonic() - began
    await check_nothing_is_left(trial, before)
    fates = check_fates(trial)
    if await service.client.status("embedgrpc.v1.EmbeddingService/embed") != _SERVING:
        trial.findings.add("the model is not healthy any more")
    end_mb = rss_mb()
    # A run that was ended early, for what was found, has no middle.
    middle_mb = progress.rss_in_the_middle_mb or end_mb
    if end_mb - middle_mb > _RSS_GROWTH_MB_MAX:
        trial.findings.add(f"memory grew from {middle_mb:.0f} MB in the middle to {end_mb:.0f} MB")
    return Summary(
        problems=trial.findings.problems,
        sent=trial.sent,
        outcomes=trial.outcomes,
        calls=trial.calls,
        fates=fates,
        account=trial.ledger.account,
        totals={one.metric: one.value for one in service.server._totals.read()},
        seconds=seconds,
        rss_mb=(middle_mb, end_mb),
    )
