"""The commands of `embedgrpc`. Only the one that is called is imported."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from embedgrpc.client.suggestions import SuggestingParser, quote, suggest

# Each command is a module of this package, with `add_arguments` and `run`.
_COMMANDS = {
    "serve": "serve models until SIGTERM",
    "check": "check the settings and print them",
    "reload": "let the running server read its settings again",
    "health": "ask the server on this machine for its health",
    "key": "make API keys",
    "pull": "download models and build their graphs",
    "inspect": "print a model's properties and the files that define them",
    "verify": "run a model and compare it with the reference",
    "triton-repo": "write a model repository for a Triton server",
}


def run_command(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    parser = SuggestingParser(
        prog="embedgrpc",
        description="Serves embeddings and reranking over gRPC.",
        epilog="Every setting is a flag (--max-inputs), a variable (EMBEDGRPC_MAX_INPUTS) and a key"
        " of the configuration file (max_inputs). Flags override variables, and variables override"
        " the file.",
    )
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=SuggestingParser
    )
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    for command, summary in _COMMANDS.items():
        added = commands.add_parser(command, allow_abbrev=False, help=summary)
        if command == name:
            module = import_module(f"embedgrpc.cli.{command.replace('-', '_')}")
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    if name and name not in _COMMANDS:
        parser.error(f"no command {quote(name)}{suggest(name, _COMMANDS)}")
    parsed = parser.parse_args(arguments)
    if not name:
        parser.error(f"give a command: {', '.join(_COMMANDS)}")
    # The command has imported both already.
    from embedgrpc.cli.failure import report  # noqa: PLC0415 - see above
    from embedgrpc.server.settings.configuration import SettingsError  # noqa: PLC0415 - see above

    try:
        code: int = parsed.run(parsed)
    except SettingsError as error:
        return report(error, code=2)
    return code


class _ShowVersion(argparse.Action):
    """Prints the version. Looks it up only then, because that takes a while."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "nargs": 0})

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Print the version and exit."""
        from importlib.metadata import version  # noqa: PLC0415 - see above

        print(f"embedgrpc {version('embedgrpc')}")
        raise SystemExit(0)
