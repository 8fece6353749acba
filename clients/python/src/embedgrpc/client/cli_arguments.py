"""The arguments of `embedgrpc-client`. Loads neither gRPC nor numpy."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from embedgrpc.client.cli_bulk_arguments import add_faults, add_files, add_representations
from embedgrpc.client.cli_evaluate_arguments import add_dataset
from embedgrpc.client.cli_numbers import at_least
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE, DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from embedgrpc.client.enums import (
    Encoding,
    InputType,
    LabelOrder,
    Priority,
    ResultOrder,
    ScoreFunction,
    ScoreScale,
    Task,
    Truncation,
)
from embedgrpc.client.suggestions import SuggestingParser, quote

_EXAMPLES = """examples:
  embedgrpc-client models
  embedgrpc-client embed "How tall is the tower?"
  embedgrpc-client embed --jsonl < texts.jsonl > vectors.jsonl
  embedgrpc-client bulk texts.parquet --output vectors --text-column text --id-column id
  embedgrpc-client evaluate my-dataset --dimensions 384,128
  embedgrpc-client rerank --query "How tall is it?" --top-n 3 < documents.txt
  embedgrpc-client classify --model nli --second "It is tall." "How tall is the tower?"
  embedgrpc-client tokens "How tall is the tower?"
  embedgrpc-client server
  embedgrpc-client load --source ./my-model --setting weight_type=int8 mine
  embedgrpc-client health embedgrpc.v1.EmbeddingService
"""


def parse_arguments(argv: Sequence[str], default_target: str) -> argparse.Namespace:
    """Parse the arguments; `command` of the result is the name of the subcommand.

    Args:
        argv: The arguments.
        default_target: The server where `--target` names none.

    Raises:
        SystemExit: The arguments are wrong (2), or ask for help or the version (0).
    """
    root = _parser(default_target)
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:  # noqa: PERF203 - a handful of arguments
            root.error(f"the argument {quote(argument)} is not UTF-8")
    parsed = root.parse_args(argv)
    if not parsed.target:
        root.error("--target is empty: give HOST:PORT or unix:PATH")
    if parsed.command == "embed" and parsed.jsonl and parsed.texts:
        root.error("--jsonl reads standard input: give no texts with it")
    if parsed.command == "embed" and parsed.chunk_overlap >= max(parsed.chunk_tokens, 1):
        root.error("--chunk-overlap must be less than --chunk-tokens")
    if parsed.api_key_file and parsed.token_file:
        root.error("give either --api-key-file or --token-file")
    return parsed


def _parser(default_target: str) -> SuggestingParser:
    root = SuggestingParser(
        prog="embedgrpc-client",
        description="Call an embedgrpc server. Results are lines of JSON on standard output.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action=_VersionAction, nargs=0, help="print the version")
    common = SuggestingParser(add_help=False)
    common.add_argument(
        "--target",
        default=default_target,
        help=f"HOST:PORT or unix:PATH; else EMBEDGRPC_TARGET, else {DEFAULT_TARGET}",
    )
    common.add_argument(
        "--timeout-s",
        type=at_least(0.001),
        default=DEFAULT_TIMEOUT_S,
        help="longest wait for a response, in seconds (default: %(default)g)",
    )
    _add_tls(common)
    _add_credentials(common)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, detail: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=[common], help=text, description=f"{text.capitalize()}. {detail}"
        )

    models = add("models", "list the models", "One line of JSON for each.")
    models.add_argument("--task", choices=get_args(Task), help="only models for this task")
    _add_embed(
        add(
            "embed",
            "embed texts",
            'Writes {"id", "vector", "token_count", "truncated"} for each text, or {"id", "error"};'
            " on a terminal, a summary. The id is the number of the text, from 0, unless the line"
            " has one.",
        )
    )
    _add_bulk(
        add(
            "bulk",
            "embed files, row by row",
            "Reads Parquet, Arrow, JSON Lines, CSV or plain lines, and writes the id, the kept"
            " columns, the embedding and the error of each row. Run the same command again to go"
            " on after a stop or a crash. The exit code is 1 if rows failed, and 2 if the output"
            " was made with other inputs or options. Parquet and Arrow need"
            ' pip install "embedgrpc-client[bulk]".',
        )
    )
    _add_evaluate(
        add(
            "evaluate",
            "measure how well vectors retrieve",
            "Embeds queries and documents of yours, searches exactly, and prints nDCG@10,"
            " Recall@100 and MRR@10 for each form of the vectors. The exit code is 1 if texts"
            " failed, and 2 if a file is malformed.",
        )
    )
    _add_rerank(
        add(
            "rerank",
            "rank documents by relevance",
            'Writes {"index", "score", "document"} for each document, best first, and then'
            ' {"index", "error"} for those that failed.',
        )
    )
    _add_classify(
        add(
            "classify",
            "score texts by labels",
            'Writes {"id", "labels", "token_count", "truncated"} for each text, or {"id", "error"}.'
            ' Labels have a "label" and a "score". The id is the number of the text, from 0.',
        )
    )
    tokens = add(
        "tokens",
        "count the tokens of texts",
        'Writes {"id", "token_count"} for each text. The id is its number, from 0.',
    )
    tokens.add_argument("texts", nargs="*", help="the texts; none for the lines of standard input")
    _add_model(tokens)
    _add_prompt(tokens, "", "texts")
    add("server", "describe the server", "Its version, default model and limits, as JSON.")
    add(
        "status",
        "tell what the server does",
        "Its models, queues, memory and last reload, as JSON. Needs the scope admin.",
    )
    _add_load(
        add(
            "load",
            "load a model on the server",
            "Prints the model as JSON when it is served. Without --source the served model is"
            " loaded again. The server goes on loading if the time is up. Needs the scope admin.",
        )
    )
    unload = add(
        "unload",
        "stop to serve a model",
        "Ends when the model's memory is free. Needs the scope admin.",
    )
    unload.add_argument("model", help="its id or an alias")
    health = add(
        "health", "print the status of services", "The exit code is 0 only if they are SERVING."
    )
    health.add_argument("services", nargs="*", help="names of services; none for the server")
    health.add_argument("--any", action="store_true", help="succeed if one of them is SERVING")
    return root


def _add_load(load: argparse.ArgumentParser) -> None:
    load.add_argument("model", nargs="?", default="", help="its id; else derived from the source")
    load.add_argument(
        "--source", default="", help="where it comes from, as in the server's configuration"
    )
    load.add_argument("--alias", action="append", default=[], help="another name; may be repeated")
    load.add_argument(
        "--setting",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="further setting of the model, such as weight_type=int8; may be repeated",
    )


def _setting(argument: str) -> tuple[str, Any]:
    name, equals, value = argument.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{quote(argument)} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _add_tls(common: argparse.ArgumentParser) -> None:
    tls = common.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="connect with TLS; a file implies it")
    tls.add_argument(
        "--ca-file",
        default="",
        metavar="FILE",
        help="authorities to trust, in PEM; else those that come with gRPC",
    )
    tls.add_argument(
        "--certificate-file", default="", metavar="FILE", help="certificate to present, in PEM"
    )
    tls.add_argument("--key-file", default="", metavar="FILE", help="its private key, in PEM")
    tls.add_argument(
        "--server-name",
        default="",
        metavar="NAME",
        help="name that the server's certificate must have; else that of the target",
    )


def _add_credentials(common: argparse.ArgumentParser) -> None:
    group = common.add_argument_group("credentials")
    group.add_argument(
        "--api-key-file",
        default="",
        metavar="FILE",
        help="file with the API key of the caller; else EMBEDGRPC_API_KEY",
    )
    group.add_argument(
        "--token-file",
        default="",
        metavar="FILE",
        help="file with a token of the caller, which is read for each call; else EMBEDGRPC_TOKEN",
    )
    group.add_argument(
        "--allow-plaintext-credentials",
        action="store_true",
        help="send them without TLS to another machine",
    )


def _add_embed(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("texts", nargs="*", help="the texts; none for the lines of standard input")
    embed.add_argument(
        "--jsonl",
        action="store_true",
        help='read lines of the form {"id": ..., "text": ...}; the id is optional',
    )
    _add_model(embed)
    _add_prompt(embed, "", "texts")
    embed.add_argument("--dimensions", type=at_least(0), default=0, help="length of the vectors")
    embed.add_argument("--encoding", choices=get_args(Encoding), default="float32")
    _add_limit(embed, "text")
    embed.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to unit length"
    )
    _add_chunking(embed)
    _add_priority(embed)
    embed.add_argument("--order", choices=get_args(ResultOrder), default="input")
    _add_batch_size(embed)


def _add_bulk(bulk: argparse.ArgumentParser) -> None:
    bulk.add_argument(
        "inputs", nargs="+", metavar="INPUT", help='a file; "-" for standard input alone'
    )
    add_files(bulk)
    _add_model(bulk)
    _add_prompt(bulk, "", "texts")
    bulk.add_argument("--dimensions", type=at_least(0), default=0, help="length of the vectors")
    bulk.add_argument("--encoding", choices=get_args(Encoding), default="float32")
    add_representations(bulk)
    _add_limit(bulk, "text")
    bulk.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to unit length"
    )
    _add_priority(bulk)
    _add_batch_size(bulk)
    add_faults(bulk)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    add_dataset(evaluate)
    _add_model(evaluate)
    _add_prompt(evaluate, "query-", "queries")
    _add_prompt(evaluate, "document-", "documents")
    _add_limit(evaluate, "text")
    _add_batch_size(evaluate)


def _add_chunking(embed: argparse.ArgumentParser) -> None:
    by = embed.add_mutually_exclusive_group()
    by.add_argument(
        "--chunk-tokens",
        type=at_least(0),
        default=0,
        metavar="N",
        help="late chunking: write a vector for every N tokens of a text, too",
    )
    by.add_argument(
        "--chunk-sentences",
        type=at_least(0),
        default=0,
        metavar="N",
        help="late chunking: write a vector for every N sentences of a text, too",
    )
    embed.add_argument(
        "--chunk-overlap",
        type=at_least(0),
        default=0,
        metavar="N",
        help="tokens that a chunk of --chunk-tokens shares with the one before",
    )


def _add_rerank(rerank: argparse.ArgumentParser) -> None:
    rerank.add_argument(
        "documents", nargs="*", help="the documents; none for the lines of standard input"
    )
    rerank.add_argument("--query", required=True, help="text to compare the documents with")
    _add_model(rerank)
    rerank.add_argument("--top-n", type=at_least(0), default=0, help="write only the best N")
    rerank.add_argument("--score-scale", choices=get_args(ScoreScale))
    _add_limit(rerank, "document")
    query = _add_prompt(rerank, "query-", "query")
    query.add_argument("--instruction", help="meaning of relevance, for models that take one")
    _add_prompt(rerank, "document-", "documents")
    rerank.add_argument(
        "--allow-partial", action="store_true", help="rank the others if a document fails"
    )
    _add_priority(rerank)


def _add_classify(classify: argparse.ArgumentParser) -> None:
    classify.add_argument(
        "texts", nargs="*", help="the texts; none for the lines of standard input"
    )
    classify.add_argument("--second", help="text to pair each text with, such as a hypothesis")
    _add_model(classify)
    classify.add_argument("--score-function", choices=get_args(ScoreFunction))
    classify.add_argument("--top-k", type=at_least(0), default=0, help="write only the best K")
    classify.add_argument("--order", choices=get_args(LabelOrder), help="order of the labels")
    classify.add_argument(
        "--result-order",
        choices=get_args(ResultOrder),
        default="input",
        help="order of the results (default: %(default)s)",
    )
    _add_limit(classify, "text or pair")
    _add_priority(classify)
    _add_batch_size(classify)


def _add_batch_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--batch-size",
        type=at_least(1),
        default=DEFAULT_BATCH_SIZE,
        help="texts in one message; set 1 where lines arrive slowly (default: %(default)d)",
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="", help="id or alias; else the server's default")


def _add_prompt(command: argparse.ArgumentParser, of: str, what: str) -> Any:
    prompt = command.add_mutually_exclusive_group()
    prompt.add_argument(
        f"--{of}input-type", choices=get_args(InputType), help=f"role of the {what}"
    )
    prompt.add_argument(f"--{of}prompt-name", help=f"one of the model's prompts, for the {what}")
    prompt.add_argument(f"--{of}prompt-text", help=f"a prompt of your own, for the {what}")
    return prompt


def _add_priority(command: argparse.ArgumentParser) -> None:
    command.add_argument("--priority", choices=get_args(Priority), help="how urgent the call is")


def _add_limit(command: argparse.ArgumentParser, of: str) -> None:
    command.add_argument(
        "--max-tokens", type=at_least(0), default=0, help=f"limit of tokens in a {of}"
    )
    command.add_argument(
        "--truncation",
        choices=get_args(Truncation),
        help="where to cut texts that are too long; none rejects them",
    )


class _VersionAction(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415 -- slow, and seldom needed

        print(parser.prog, version("embedgrpc-client"))
        parser.exit()
