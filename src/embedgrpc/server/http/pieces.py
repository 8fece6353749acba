"""Sends an answer piece by piece."""

import asyncio
from typing import Any

from aiohttp import web

# Encrypting this much takes 0.2 ms, and as much again where memory is fresh; the largest answers
# would take 5 ms and more at once.
PIECE_BYTES = 512 * 1024


class PiecewiseResponse(web.Response):
    """A response that other calls need not wait for while it is encrypted.

    It also holds one piece in encrypted form, instead of the whole body, if the client is slow.
    """

    async def write_eof(self, data: Any = b"") -> None:
        """Send the body; aiohttp calls this once the headers are written."""
        body = self.body
        if not isinstance(body, bytes) or len(body) <= PIECE_BYTES:
            await super().write_eof(data)
            return
        for start in range(0, len(body), PIECE_BYTES):
            await self.write(body[start : start + PIECE_BYTES])
            # Writing waits only for a client that reads more slowly.
            await asyncio.sleep(0)
        await web.StreamResponse.write_eof(self)
