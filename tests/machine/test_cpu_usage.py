"""How busy the machine is."""

import time

from embedgrpc.machine.cpu_usage import CpuUsage


def test_work_shows_in_the_share() -> None:
    """A core that works is a share of all; the next reading begins where the last ended."""
    usage = CpuUsage()
    began = time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert 0 < usage.percent() <= 100
    assert 0 <= usage.percent() <= 100
