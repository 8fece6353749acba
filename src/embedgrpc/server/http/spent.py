"""What the work of a request took, for the headers of its answer."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from embedgrpc.engine.work import Call
from embedgrpc.server.http.headers import TIMING_HEADERS


@dataclass(slots=True)
class Spent:
    """What the work of a request took until now. On the event loop.

    Attributes:
        began_s: When the request had been read, in seconds of the monotonic clock.
        calls: What ran for it.
        device: Where.
        characters: Those of its inputs.
        tokens: Those that the model read.
    """

    began_s: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    device: str = ""
    characters: int = 0
    tokens: int = 0

    def add(self, *, device: str, texts: Iterable[object], tokens: int) -> None:
        """Add inputs that were run.

        Args:
            device: Where.
            texts: The texts; token ids have no characters.
            tokens: What the model read of them.
        """
        self.device = device
        self.characters += sum(len(one) for one in texts if isinstance(one, str))
        self.tokens += tokens

    def headers(self) -> Mapping[str, str]:
        """Return the headers; times are means over the jobs, which may have run side by side."""
        total_s = time.monotonic() - self.began_s
        times = [one.times for one in self.calls]
        jobs = max(sum(one.jobs for one in times), 1)
        seconds = (
            sum(one.tokenize_s for one in times) / jobs,
            sum(one.queue_s for one in times) / jobs,
            sum(one.run_s for one in times) / jobs,
        )
        values = (
            "gpu" if self.device == "cuda" else self.device,
            _milliseconds(total_s),
            str(self.characters),
            str(self.tokens),
            _milliseconds(total_s),
            *map(_milliseconds, seconds),
        )
        return dict(zip(TIMING_HEADERS, values, strict=True))


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
