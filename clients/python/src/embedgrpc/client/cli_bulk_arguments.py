"""The arguments that only `embedgrpc-client bulk` has. Loads neither gRPC nor numpy."""

import argparse
from typing import Final, get_args

from embedgrpc.client.cli_numbers import at_least
from embedgrpc.client.enums import Representation
from embedgrpc.client.suggestions import quote, suggest

# Here, not with what reads and writes them: that loads numpy.
INPUT_FORMATS: Final = ("parquet", "arrow", "jsonl", "csv", "lines", "openai-batch")
OUTPUT_FORMATS: Final = ("parquet", "arrow", "jsonl", "npy", "openai-batch")
_UNIT_ROWS: Final = 8192
_PATIENCE_S: Final = 300.0


def add_files(bulk: argparse.ArgumentParser) -> None:
    """Add what is read and written."""
    files = bulk.add_argument_group("files and columns")
    files.add_argument(
        "--output",
        required=True,
        metavar="DIR|FILE",
        help="folder of parts, or one file ending in .parquet, .arrow, .jsonl or .npy",
    )
    files.add_argument(
        "--input-format", choices=INPUT_FORMATS, default="", help="else the suffix tells it"
    )
    files.add_argument(
        "--output-format",
        choices=OUTPUT_FORMATS,
        default="",
        help="else the suffix tells it; parquet in a folder",
    )
    files.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="what to embed (default: %(default)s, the name of plain lines)",
    )
    files.add_argument(
        "--id-column", default="", metavar="NAME", help="else rows get their numbers as id, from 0"
    )
    files.add_argument(
        "--keep",
        type=_names,
        default=[],
        metavar="NAME,...|all",
        help="columns to copy to the output",
    )
    files.add_argument(
        "--unit-rows",
        type=at_least(1),
        default=_UNIT_ROWS,
        metavar="N",
        help="rows that are written, and lost in a crash, together (default: %(default)d)",
    )


def add_representations(bulk: argparse.ArgumentParser) -> None:
    """Add what to return of each text."""
    bulk.add_argument(
        "--representations",
        type=_representations,
        default=[],
        metavar="NAME,...",
        help=f"of {', '.join(get_args(Representation))}; else the model's first",
    )
    bulk.add_argument(
        "--max-sparse-terms",
        type=at_least(0),
        default=0,
        metavar="N",
        help="keep only the N heaviest terms of a sparse vector",
    )


def add_faults(bulk: argparse.ArgumentParser) -> None:
    """Add what to do about faults."""
    faults = bulk.add_argument_group("faults")
    faults.add_argument(
        "--patience",
        type=at_least(0.0),
        default=_PATIENCE_S,
        metavar="SECONDS",
        help="longest time without a result: servers restart meanwhile (default: %(default)g)",
    )
    faults.add_argument(
        "--max-errors",
        type=at_least(0),
        metavar="N",
        help="stop when more than N rows failed; else there is no limit",
    )
    faults.add_argument(
        "--retry-failed", action="store_true", help="embed rows again that failed before"
    )


def _names(argument: str) -> list[str]:
    names = argument.split(",")
    if "" in names:
        raise argparse.ArgumentTypeError(f"{quote(argument)} has an empty name of a column")
    return names


def _representations(argument: str) -> list[str]:
    known = get_args(Representation)
    names = argument.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {quote(name)}{suggest(name, known)}")
    return [name for name in known if name in names]
