"""Reads how busy the machine's CPUs are."""

from pathlib import Path

_STAT = Path("/proc/stat")
# In the first line: the time that the CPUs were idle, and idle while they waited for disks.
_IDLE_FIELDS = slice(3, 5)


class CpuUsage:
    """The share of the CPU time that was used between two readings."""

    def __init__(self) -> None:
        self._busy, self._all = _read()

    def percent(self) -> float:
        """Return the share since the last call, 0 to 100; 0 where the system does not say."""
        busy, whole = _read()
        share = (busy - self._busy) / max(whole - self._all, 1)
        self._busy, self._all = busy, whole
        return 100 * min(max(share, 0.0), 1.0)


def _read() -> tuple[int, int]:
    """Return the busy and the whole time of all CPUs since the machine started."""
    try:
        with _STAT.open() as lines:
            # After the eighth come the times of guests, which are in the first two.
            times = [int(one) for one in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(times) - sum(times[_IDLE_FIELDS]), sum(times)
