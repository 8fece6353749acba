"""The arguments that only `embedgrpc-client evaluate` has. Loads neither gRPC nor numpy."""

import argparse
import contextlib
from typing import Final

from embedgrpc.client.cli_numbers import at_least
from embedgrpc.client.suggestions import quote, suggest

# Here, not with what derives them: that loads numpy.
VECTOR_FORMS: Final = (
    *("float32", "float16", "int8", "ubinary"),
    *("ubinary+query", "ubinary+int8"),
)
_DEFAULT_FORMS: Final = ("float32", "int8", "ubinary", "ubinary+query", "ubinary+int8")
_CANDIDATES_MIN: Final = 100  # of Recall@100
_CANDIDATES: Final = 400
_PATIENCE_S: Final = 300.0


def add_dataset(evaluate: argparse.ArgumentParser) -> None:
    """Add what is read, and what is compared."""
    evaluate.add_argument(
        "dataset",
        metavar="FOLDER",
        help="has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, as BEIR has them",
    )
    evaluate.add_argument(
        "--split", default="test", metavar="NAME", help="the judgements (default: %(default)s)"
    )
    evaluate.add_argument(
        "--vectors",
        type=_forms,
        default=list(_DEFAULT_FORMS),
        metavar="NAME,...",
        help=f"of {', '.join(VECTOR_FORMS)} (default: all but float16)",
    )
    evaluate.add_argument(
        "--dimensions",
        type=_dimensions,
        default=[],
        metavar="N,...",
        help="lengths of vectors; else the model's own",
    )
    evaluate.add_argument(
        "--candidates",
        type=at_least(_CANDIDATES_MIN),
        default=_CANDIDATES,
        metavar="N",
        help="documents that ubinary finds for another form to rank (default: %(default)d)",
    )
    evaluate.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out the document that has the id of the query, as in ArguAna",
    )
    evaluate.add_argument(
        "--patience",
        type=at_least(0.0),
        default=_PATIENCE_S,
        metavar="SECONDS",
        help="longest time without a result: servers restart meanwhile (default: %(default)g)",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")


def _forms(argument: str) -> list[str]:
    names = argument.split(",")
    for name in names:
        if name not in VECTOR_FORMS:
            raise argparse.ArgumentTypeError(f"no {quote(name)}{suggest(name, VECTOR_FORMS)}")
    return list(dict.fromkeys(names))


def _dimensions(argument: str) -> list[int]:
    lengths: list[int] = []
    for one in argument.split(","):
        with contextlib.suppress(ValueError):
            lengths.append(int(one))
            if lengths[-1] > 0:
                continue
        raise argparse.ArgumentTypeError(f"{quote(one)} is not a whole number above 0")
    return list(dict.fromkeys(lengths))
