"""The commands of `embedgrpc-client`."""

import argparse
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.command import WRONG_USAGE, bulk
from embedgrpc.client.bulk.json_numbers import short_floats
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.client import Client
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE
from embedgrpc.client.errors import ConnectionFailedError, EmbedGrpcError
from embedgrpc.client.evaluate.command import evaluate
from embedgrpc.client.result_types import StreamResult
from embedgrpc.client.text_parts import ChunkVectors
from embedgrpc.client.unary_calls import HealthStatus

_INPUT_BYTES_MAX: Final = 16 * 2**20  # of one line, and of the documents of a call
_SHOWN_NUMBERS: Final = 4


def run_command(arguments: argparse.Namespace) -> int:
    """Run one command; print a failure as one line on standard error.

    Args:
        arguments: The result of `parse_arguments`.

    Returns:
        The exit code.
    """
    try:
        tls = _options(arguments, "tls", "ca_file", "certificate_file", "key_file", "server_name")
        credentials = _credentials(arguments)
        with Client(
            arguments.target, timeout_s=arguments.timeout_s, **tls, **credentials
        ) as client:
            code = _COMMANDS[arguments.command](client, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except UsageError as error:
        _print_error(str(error))
        return WRONG_USAGE
    except ConnectionFailedError as error:
        _print_error(
            f"the connection to {arguments.target} failed; is a server running there?"
            f" --target sets another address ({error.message})"
        )
    except (EmbedGrpcError, OSError, ValueError) as error:
        _print_error(str(error))
    else:
        return code
    return 1


def _credentials(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a client that say who calls."""
    allowed = {"allow_plaintext_credentials": arguments.allow_plaintext_credentials}
    if arguments.api_key_file:
        return {"api_key": _read_secret(arguments.api_key_file), **allowed}
    if arguments.token_file:
        # Whoever renews the token replaces the file.
        return {"token": lambda: _read_secret(arguments.token_file), **allowed}
    return {"api_key": arguments.api_key, "token": arguments.token, **allowed}


def _read_secret(path: str) -> str:
    return Path(path).expanduser().read_text("utf-8").strip()


def _models(client: Client, arguments: argparse.Namespace) -> int:
    for model in client.list_models(arguments.task):
        _print_json(dataclasses.asdict(model))
    return 0


def _embed(client: Client, arguments: argparse.Namespace) -> int:
    inputs: Iterable[str] | Iterable[tuple[Any, str]] = arguments.texts or (
        _json_inputs() if arguments.jsonl else _stdin_lines()
    )
    names = ("model", "order", "batch_size", "input_type", "prompt_name", "prompt_text")
    more = ("dimensions", "encoding", "truncation", "max_tokens", "normalize", "priority")
    chunking = ("chunk_tokens", "chunk_overlap", "chunk_sentences")
    is_terminal = sys.stdout.isatty()
    result_count = failed_count = 0
    with client.embed_stream(inputs, **_options(arguments, *names, *more, *chunking)) as results:
        for result in results:
            if is_terminal:
                print(_summary(result))
            else:
                _print_json(_as_json(result))
            result_count += 1
            failed_count += result.error is not None
    return _end(failed_count, f"{result_count} texts")


def _rerank(client: Client, arguments: argparse.Namespace) -> int:
    documents: list[str] = []
    size = 0
    for document in arguments.documents or _stdin_lines():
        size += len(document)
        if size > _INPUT_BYTES_MAX:
            raise ValueError(f"the documents have more than {_INPUT_BYTES_MAX} characters")
        documents.append(document)
    names = ("model", "allow_partial", "top_n", "score_scale", "truncation", "max_tokens")
    query = ("query_input_type", "query_prompt_name", "query_prompt_text", "instruction")
    more = ("document_input_type", "document_prompt_name", "document_prompt_text", "priority")
    ranking = client.rerank(
        arguments.query, documents, **_options(arguments, *names, *query, *more)
    )
    for ranked in ranking:
        document = documents[ranked.index]
        _print_json({"index": ranked.index, "score": ranked.score, "document": document})
    for index, error in ranking.errors.items():
        _print_json({"index": index, "error": _error_json(error)})
    return _end(len(ranking.errors), f"{len(documents)} documents")


def _classify(client: Client, arguments: argparse.Namespace) -> int:
    names = ("model", "score_function", "top_k", "order", "truncation", "max_tokens", "priority")
    texts: Iterable[str] = arguments.texts or _stdin_lines()
    second = arguments.second
    inputs = texts if second is None else ((text, second) for text in texts)
    result_count = failed_count = 0
    with client.classify_stream(
        inputs,
        result_order=arguments.result_order,
        batch_size=arguments.batch_size,
        **_options(arguments, *names),
    ) as results:
        for result in results:
            line: dict[str, Any] = {"id": result.id}
            found = result.classification
            if found is None:
                line["error"] = _error_json(result.error) if result.error else {}
            else:
                line["labels"] = [
                    {"label": label.label, "score": label.score} for label in found.labels
                ]
                line |= {"token_count": found.token_count, "truncated": found.truncated}
            _print_json(line)
            result_count += 1
            failed_count += found is None
    return _end(failed_count, f"{result_count} texts")


def _tokens(client: Client, arguments: argparse.Namespace) -> int:
    options = _options(arguments, "model", "input_type", "prompt_name", "prompt_text")
    texts = iter(arguments.texts or _stdin_lines())
    number = 0
    while batch := list(itertools.islice(texts, DEFAULT_BATCH_SIZE)):
        for count in client.count_tokens(batch, **options).token_counts.tolist():
            _print_json({"id": str(number), "token_count": count})
            number += 1
    return 0


def _server(client: Client, _: argparse.Namespace) -> int:
    server = dataclasses.asdict(client.get_server())
    _print_json(server | {"start_time": server["start_time"].isoformat()})
    return 0


def _status(client: Client, _: argparse.Namespace) -> int:
    status = dataclasses.asdict(client.get_status())
    last = status["last_reload"]
    if last is not None:
        last["end_time"] = last["end_time"].isoformat()
    _print_json(status | {"start_time": status["start_time"].isoformat()})
    return 0


def _load(client: Client, arguments: argparse.Namespace) -> int:
    loaded = client.load_model(
        arguments.model,
        source=arguments.source,
        aliases=arguments.alias,
        settings=dict(arguments.setting),
    )
    _print_json(dataclasses.asdict(loaded))
    return 0


def _unload(client: Client, arguments: argparse.Namespace) -> int:
    client.unload_model(arguments.model)
    return 0


def _health(client: Client, arguments: argparse.Namespace) -> int:
    statuses = [client.health(service) for service in arguments.services or [""]]
    print(*statuses, sep="\n")
    serving = [status is HealthStatus.SERVING for status in statuses]
    return 0 if (any(serving) if arguments.any else all(serving)) else 1


_COMMANDS: Final = {
    "models": _models,
    "embed": _embed,
    "bulk": bulk,
    "evaluate": evaluate,
    "rerank": _rerank,
    "classify": _classify,
    "tokens": _tokens,
    "server": _server,
    "status": _status,
    "load": _load,
    "unload": _unload,
    "health": _health,
}


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names}


def _stdin_lines() -> Iterator[str]:
    """Yield the lines of standard input without their ends; read no further than needed.

    The stream reads them in a thread that may still wait for a line when the process ends. The
    interpreter aborts if `sys.stdin` is in use then. Hence a second file, which stays open.
    """
    if sys.stdin.isatty():
        _print_error("reading the terminal, one text a line; end with Ctrl-D")
    file = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
    number = 0
    while line := file.readline(_INPUT_BYTES_MAX + 1):
        if len(line) > _INPUT_BYTES_MAX:
            raise ValueError(f"line {number} has more than {_INPUT_BYTES_MAX} bytes")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            # Without its cause, which holds the line.
            raise ValueError(f"line {number} is not UTF-8 at byte {error.start}") from None
        yield text.removesuffix("\n").removesuffix("\r")
        number += 1


def _json_inputs() -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(_stdin_lines()):
        match _parse_json(line):
            case {"id": caller_id, "text": str(text)}:
                yield caller_id, text
            case {"text": str(text)}:
                yield str(number), text
            case _:
                raise ValueError(f'line {number} is not a JSON object with a "text"')


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # rejected like JSON that is not an object


def _as_json(result: StreamResult) -> dict[str, Any]:
    if result.error is not None:
        return {"id": result.id, "error": _error_json(result.error)}
    line: dict[str, Any] = {"id": result.id}
    if result.vector is not None:
        line["vector"] = short_floats(result.vector)
        if result.vector.dtype.name == "int8":
            line["scale"] = result.scale
    if result.sparse is not None:
        line["sparse"] = dict(
            zip(result.sparse.indices.tolist(), short_floats(result.sparse.values), strict=True)
        )
    if result.multi_vector is not None:
        line["multi_vector"] = short_floats(result.multi_vector.values)
    if result.chunks is not None:
        line["chunks"] = _chunks_json(result.chunks)
    return line | {"token_count": result.token_count, "truncated": result.truncated}


def _chunks_json(chunks: ChunkVectors) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index, vector in enumerate(short_floats(chunks.vectors)):
        row = {
            "start": int(chunks.character_starts[index]),
            "end": int(chunks.character_ends[index]),
            "token_count": int(chunks.token_counts[index]),
            "vector": vector,
        }
        if chunks.scales is not None:
            row["scale"] = float(chunks.scales[index])
        rows.append(row)
    return rows


def _error_json(error: EmbedGrpcError) -> dict[str, str]:
    return {"reason": error.reason, "message": error.message}


def _summary(result: StreamResult) -> str:
    """Return a result as a line for people: the start of its vector only."""
    if result.error is not None:
        return f"{result.id}: {result.error}"
    facts = [f"{result.token_count} tokens" + (" (truncated)" if result.truncated else "")]
    if result.vector is not None:
        start = ", ".join(f"{number:.4g}" for number in result.vector[:_SHOWN_NUMBERS])
        facts.append(f"{len(result.vector)} x {result.vector.dtype} [{start}, ...]")
    if result.sparse is not None:
        facts.append(f"{len(result.sparse.indices)} sparse terms")
    if result.multi_vector is not None:
        facts.append(f"{len(result.multi_vector.values)} vectors")
    if result.chunks is not None:
        facts.append(f"{len(result.chunks)} chunks")
    return f"{result.id}: {', '.join(facts)}"


def _print_json(value: dict[str, Any]) -> None:
    # Flush each line: the reader may be waiting for it.
    print(json.dumps(value), flush=True)


def _end(failed_count: int, of: str) -> int:
    """Tell how many inputs failed, if any; return the exit code."""
    if not failed_count:
        return 0
    _print_error(f"{failed_count} of {of} failed")
    return 1


def _print_error(message: str) -> None:
    sys.stderr.write(f"embedgrpc-client: {' '.join(message.split())}\n")
