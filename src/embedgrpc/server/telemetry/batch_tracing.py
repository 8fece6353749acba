"""Gives each batch a span, linked to all the calls whose texts are in it."""

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.server.telemetry.tracing import Attribute


class BatchTracer:
    """Records the span of a batch after it has run. Any thread may call it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def batch_finished(self, report: BatchReport) -> None:
        """Record an INTERNAL span that is linked to each recorded call with texts in the batch.

        A batch without such a call leaves no span, so the sampling of calls decides.
        """
        callers = {
            (context.trace_id, context.span_id): context
            for context in report.traces
            if isinstance(context, SpanContext)
        }
        if not callers:
            return
        span = self._tracer.start_span(
            f"batch {report.model}",
            # No parent: the batch belongs to all its calls alike.
            context=Context(),
            kind=SpanKind.INTERNAL,
            attributes={
                Attribute.GEN_AI_REQUEST_MODEL: report.model,
                Attribute.BATCH_SEQUENCES: report.sequences,
                Attribute.BATCH_TOKENS: report.tokens,
                Attribute.BATCH_PADDED_TOKENS: report.padded_tokens,
            },
            links=[Link(context) for context in callers.values()],
            start_time=report.started_ns,
        )
        if report.error:
            span.set_attribute(Attribute.ERROR_TYPE, report.error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(report.finished_ns)
