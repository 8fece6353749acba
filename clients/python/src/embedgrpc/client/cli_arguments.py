"""The arguments of `embedgrpc-client`."""

import argparse
from typing import Any, TypeVar, get_args

from embedgrpc.client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from embedgrpc.client.enums import Encoding, InputType, ResultOrder, ScoreScale, Task, Truncation
from embedgrpc.client.stream_state import BATCH_SIZE

NumberT = TypeVar("NumberT", int, float)

_EXAMPLES = """examples:
  embedgrpc-client models
  echo "How tall is the tower?" | embedgrpc-client embed --input-type query
  embedgrpc-client embed --jsonl < texts.jsonl > vectors.jsonl
  embedgrpc-client rerank --query "How tall is it?" --top-n 3 < documents.txt
  embedgrpc-client health embedgrpc.v1.EmbeddingService
"""


def parser(default_target: str) -> argparse.ArgumentParser:
    """Makes the parser.

    Args:
        default_target: Where the server is unless `--target` says otherwise.

    Returns:
        The parser; `command` of its result is the name of the subcommand.
    """
    root = argparse.ArgumentParser(
        prog="embedgrpc-client",
        description="Asks an embedgrpc server. Answers are lines of JSON on standard output.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--target",
        default=default_target,
        help=f"HOST:PORT or unix:PATH; else EMBEDGRPC_TARGET, else {DEFAULT_TARGET}",
    )
    common.add_argument(
        "--timeout-s",
        type=_positive_float,
        default=DEFAULT_TIMEOUT_S,
        help="longest wait for an answer, in seconds (default: %(default)g)",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, detail: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=[common], help=text, description=f"{text.capitalize()}. {detail}"
        )

    models = add("models", "list the models", "One line of JSON for each.")
    models.add_argument("--task", choices=get_args(Task), help="only models for this task")
    _add_embed(
        add(
            "embed",
            "embed the lines of standard input",
            'Writes {"id", "vector", "token_count", "truncated"} for each, or {"id", "error"}. '
            "The id is the number of the line, from 0, unless the line gives one.",
        )
    )
    _add_rerank(
        add(
            "rerank",
            "rank the lines of standard input by relevance",
            'Writes {"index", "score", "document"} for each, best first.',
        )
    )
    health = add(
        "health", "print how services are", "The exit status is 0 only when they are SERVING."
    )
    health.add_argument("services", nargs="*", help="the whole server when left out")
    health.add_argument("--any", action="store_true", help="one that is SERVING is enough")
    return root


def _add_embed(embed: argparse.ArgumentParser) -> None:
    embed.add_argument(
        "--jsonl",
        action="store_true",
        help='each line is {"id": ..., "text": ...}; id may be absent',
    )
    _add_model(embed)
    prompt = embed.add_mutually_exclusive_group()
    prompt.add_argument("--input-type", choices=get_args(InputType), help="the role of the texts")
    prompt.add_argument("--prompt-name", help="one of the model's prompts")
    prompt.add_argument("--prompt-text", help="a prompt of your own")
    embed.add_argument("--dimensions", type=int, default=0, help="length of the vectors")
    embed.add_argument("--encoding", choices=get_args(Encoding), default="float32")
    embed.add_argument("--max-tokens", type=int, default=0, help="cut, or refuse, longer texts")
    _add_truncation(embed)
    embed.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="give vectors unit length or not"
    )
    embed.add_argument("--order", choices=get_args(ResultOrder), default="input")
    embed.add_argument(
        "--batch-size",
        type=_positive_int,
        default=BATCH_SIZE,
        help="lines in one message; 1 where lines come slowly (default: %(default)d)",
    )


def _add_rerank(rerank: argparse.ArgumentParser) -> None:
    rerank.add_argument("--query", required=True, help="what the lines are compared with")
    _add_model(rerank)
    rerank.add_argument("--top-n", type=int, default=0, help="write only the best ones")
    rerank.add_argument("--score-scale", choices=get_args(ScoreScale))
    rerank.add_argument("--instruction", default="", help="for models that take one")
    _add_truncation(rerank)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="", help="id or alias; else the server's default")


def _add_truncation(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--truncation", choices=get_args(Truncation), help="what to do with texts too long"
    )


def chosen(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Picks arguments to be passed on by name.

    Args:
        arguments: What was parsed.
        names: Which of them.

    Returns:
        Their values by name.
    """
    return {name: getattr(arguments, name) for name in names}


def _positive_float(value: str) -> float:
    return _positive(float(value))


def _positive_int(value: str) -> int:
    return _positive(int(value))


def _positive(number: NumberT) -> NumberT:
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{number} is not positive and finite")
    return number
