"""The command `embedgrpc-client`.

Exit status: 0, 1 after a failure (one line on standard error tells which), 2 for wrong usage,
130 after Ctrl-C.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from embedgrpc.client.channel import DEFAULT_TARGET, MESSAGE_BYTES_MAX
from embedgrpc.client.cli_arguments import chosen, parser
from embedgrpc.client.client import Client
from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.result_types import StreamResult
from embedgrpc.client.unary_calls import HealthStatus

_INTERRUPTED: Final = 130  # what a shell reports after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: The arguments are wrong (2), or ask for help (0).
    """
    root = parser(os.environ.get("EMBEDGRPC_TARGET") or DEFAULT_TARGET)
    arguments = root.parse_args(argv)
    try:
        client = Client(arguments.target, timeout_s=arguments.timeout_s)
        with client:
            status = _COMMANDS[arguments.command](client, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the answers has enough of them; Python's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (EmbedGrpcError, OSError, ValueError) as error:
        sys.stderr.write(f"embedgrpc-client: {' '.join(str(error).split())}\n")
        return 1
    return status


def _models(client: Client, arguments: argparse.Namespace) -> int:
    for model in client.list_models(arguments.task):
        _write(dataclasses.asdict(model))
    return 0


def _embed(client: Client, arguments: argparse.Namespace) -> int:
    inputs = _json_inputs() if arguments.jsonl else _stdin_lines()
    names = ("model", "order", "batch_size", "input_type", "prompt_name", "prompt_text")
    more = ("dimensions", "encoding", "truncation", "max_tokens", "normalize")
    line_count = failed_count = 0
    with client.embed_stream(inputs, **chosen(arguments, *names, *more)) as results:
        for result in results:
            _write(_as_json(result))
            line_count += 1
            failed_count += result.error is not None
    if failed_count:
        sys.stderr.write(f"embedgrpc-client: {failed_count} of {line_count} lines failed\n")
    return 1 if failed_count else 0


def _rerank(client: Client, arguments: argparse.Namespace) -> int:
    documents: list[str] = []
    size = 0
    for document in _stdin_lines():
        size += len(document)
        if size > MESSAGE_BYTES_MAX:
            raise ValueError(f"the documents have more than {MESSAGE_BYTES_MAX} characters")
        documents.append(document)
    names = ("model", "top_n", "score_scale", "truncation", "instruction")
    for ranked in client.rerank(arguments.query, documents, **chosen(arguments, *names)):
        document = documents[ranked.index]
        _write({"index": ranked.index, "score": ranked.score, "document": document})
    return 0


def _health(client: Client, arguments: argparse.Namespace) -> int:
    statuses = [client.health(service) for service in arguments.services or [""]]
    print(*statuses, sep="\n")
    serving = [status is HealthStatus.SERVING for status in statuses]
    return 0 if (any(serving) if arguments.any else all(serving)) else 1


_COMMANDS: Final = {"models": _models, "embed": _embed, "rerank": _rerank, "health": _health}


def _stdin_lines() -> Iterator[str]:
    """Yields the lines of standard input without their ends, reading no further than asked.

    The stream reads them in a thread that may still wait for a line when the process ends; the
    interpreter stops with a fatal error when it then finds `sys.stdin` in use. Hence a file of
    our own, which is not closed.
    """
    file = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
    number = 0
    while line := file.readline(MESSAGE_BYTES_MAX + 1):
        if len(line) > MESSAGE_BYTES_MAX:
            raise ValueError(f"line {number} has more than {MESSAGE_BYTES_MAX} bytes")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            # Without its cause: that one holds the line.
            raise ValueError(f"line {number} is not UTF-8 at byte {error.start}") from None
        yield text.removesuffix("\n").removesuffix("\r")
        number += 1


def _json_inputs() -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(_stdin_lines()):
        match _parsed(line):
            case {"id": caller_id, "text": str(text)}:
                yield caller_id, text
            case {"text": str(text)}:
                yield str(number), text
            case _:
                raise ValueError(f'line {number} is not a JSON object with a "text"')


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # like JSON that is no object


def _as_json(result: StreamResult) -> dict[str, Any]:
    if result.error is not None:
        error = {"reason": result.error.reason, "message": result.error.message}
        return {"id": result.id, "error": error}
    line: dict[str, Any] = {"id": result.id}
    if result.vector is not None:
        line["vector"] = result.vector.tolist()
        if result.vector.dtype.name == "int8":
            line["scale"] = result.scale
    return line | {"token_count": result.token_count, "truncated": result.truncated}


def _write(value: dict[str, Any]) -> None:
    # Each line at once: the reader may be waiting for it.
    print(json.dumps(value), flush=True)
