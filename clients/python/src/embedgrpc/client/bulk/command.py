"""The command `embedgrpc-client bulk`."""

import argparse
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.run import run
from embedgrpc.client.bulk.run_options import RunOptions
from embedgrpc.client.client import Client
from embedgrpc.client.errors import InvalidRequestError, ModelNotFoundError, UnsupportedError

WRONG_USAGE: Final = 2
_ALL: Final = "all"
_EMBED: Final = (
    *("input_type", "prompt_name", "prompt_text", "dimensions", "encoding", "truncation"),
    *("max_tokens", "normalize", "representations", "max_sparse_terms", "priority"),
)


def bulk(client: Client, arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code.

    Raises:
        UsageError: The inputs, the options or an output made with others do not allow it.
        EmbedGrpcError: The server was away for longer than the patience.
        OSError: A file cannot be read or written.
    """
    try:
        return run(client, _options(arguments))
    except (InvalidRequestError, ModelNotFoundError, UnsupportedError) as error:
        # Of the stream: what is wrong with a text is the error of its row.
        raise UsageError(str(error)) from error


def _options(arguments: argparse.Namespace) -> RunOptions:
    chosen: dict[str, Any] = {name: getattr(arguments, name) for name in _EMBED}
    # Those that are not given stay out of the manifest, so that later versions may add some.
    embed = {
        name: value
        for name, value in chosen.items()
        if value not in (None, 0, []) or value is False or (name == "prompt_text" and value == "")
    }
    keep = arguments.keep
    return RunOptions(
        inputs=arguments.inputs,
        input_format=arguments.input_format,
        output=Path(arguments.output),
        output_format=arguments.output_format,
        text_column=arguments.text_column,
        id_column=arguments.id_column,
        keep=None if keep == [_ALL] else keep,
        unit_rows=arguments.unit_rows,
        model=arguments.model,
        embed=embed,
        batch_size=arguments.batch_size,
        patience_s=arguments.patience,
        failed_max=arguments.max_errors,
        retry_failed=arguments.retry_failed,
    )
