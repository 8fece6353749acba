"""How often limits of callers refused calls, and how long they made streams wait."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from embedgrpc.server.rates.refusals import Limit
from embedgrpc.server.telemetry.metrics import Reading


@dataclass(slots=True)
class RateTotals:
    """Totals since the start, over all callers.

    Attributes:
        refusals: Refused calls by limit.
        waited_s: How long streams waited for their turns, in seconds.
    """

    refusals: Counter[Limit] = field(default_factory=lambda: Counter(dict.fromkeys(Limit, 0)))
    waited_s: float = 0.0

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric. From any thread."""
        for limit in Limit:
            attributes = {"limit": limit.value}
            yield Reading("embedgrpc.rate_limits.refusals", self.refusals[limit], attributes)
        yield Reading("embedgrpc.rate_limits.stream_wait", self.waited_s, {})
