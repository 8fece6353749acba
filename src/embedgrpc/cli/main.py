"""The command `embedgrpc`: gets the process ready before anything large is imported."""

import os
import signal
import sys
from collections.abc import Sequence

_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    _open_standard_streams()
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "serve":
        _end_at_signals()
    try:
        # Late, because a signal may arrive during this import.
        from embedgrpc.cli.commands import run_command  # noqa: PLC0415 - see above
        from embedgrpc.libraries.no_telemetry import disable_telemetry  # noqa: PLC0415 - see above
        from embedgrpc.libraries.proxies import exclude_loopback  # noqa: PLC0415 - see above

        disable_telemetry()
        exclude_loopback()
        return run_command(given)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _end_at_signals() -> None:
    """End the process at a signal, until the server listens for signals itself.

    Nothing is served yet, so this is a graceful stop. As the first process of a container it
    would otherwise not be ended at all: there signals without a handler are dropped.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # What `nohup`, or a shell in the background, had ignored stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(0))


def _open_standard_streams() -> None:
    """Open what is closed of the standard streams: to nowhere.

    Otherwise the next file or connection that is opened takes the place of, say, stderr, and gets
    what libraries write there.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(nowhere, descriptor)
    if nowhere > 2:  # noqa: PLR2004 - it is none of the three itself
        os.close(nowhere)
    # Python has none where they were closed at its start.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor that stays open
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - likewise


if __name__ == "__main__":
    raise SystemExit(main())
