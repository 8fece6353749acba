"""Gives each batch a span, linked to the calls whose texts rode in it: a batch has many parents."""

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.server.telemetry.tracing import Attribute


class BatchTracer:
    """Writes the span of a batch once the batch has been run. Any thread may call it.

    Args:
        tracer: Makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def batch_finished(self, report: BatchReport) -> None:
        """Writes an INTERNAL span that is linked to each recorded call with a part in the batch.

        A batch without such a call leaves no span: how many batches are traced follows from how
        many calls are.

        Args:
            report: What became of the batch; its traces are what `current_context()` returned.
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
            # A batch that one of the calls started belongs to the others just as much.
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
