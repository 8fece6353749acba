"""An event loop in its own thread."""

import asyncio
import threading


class LoopThread:
    """A thread that runs an event loop until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="triton", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop, and wait for its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()
