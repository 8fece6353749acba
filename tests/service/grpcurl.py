"""grpcurl, pointed at a server."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any


class Grpcurl:
    """The program, pointed at a server.

    Attributes:
        program: Its path.
    """

    def __init__(self, program: str, target: str) -> None:
        self.program = program
        self._target = target

    def run(self, *arguments: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [self.program, "-plaintext", *flags, self._target, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def call(self, method: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Send messages to a method and return its responses."""
        data = "\n".join(json.dumps(message) for message in messages)
        done = self.run(method, flags=("-d", data))
        assert done.returncode == 0, done.stderr
        decoder = json.JSONDecoder()
        answers = []
        rest = done.stdout.strip()
        while rest:
            answer, end = decoder.raw_decode(rest)
            answers.append(answer)
            rest = rest[end:].strip()
        return answers
