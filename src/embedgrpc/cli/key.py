"""`embedgrpc key`: makes API keys."""

import argparse
import datetime as dt
import sys

from embedgrpc.cli.toml import write_value
from embedgrpc.client.suggestions import SuggestingParser
from embedgrpc.server.identity.api_keys import make_key
from embedgrpc.server.identity.rights import check_caller_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = "Makes API keys for the file that --api-keys-file names."
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SuggestingParser
    )
    new = commands.add_parser("new", allow_abbrev=False, help="make a new key")
    new.description = (
        "Prints a new random key on the standard error, once, and on the standard output the lines"
        " for the file, which hold only its hash: embedgrpc key new NAME >> keys.toml"
    )
    new.add_argument("name", type=_name, help="the caller; it may have several keys")
    new.add_argument(
        "--expires",
        type=_expiry,
        metavar="WHEN",
        help="a number of days from now such as 90d, a date such as 2027-01-31, or a time such as"
        " 2027-01-31T12:00:00Z (default: never)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Make a key; return 0."""
    key, digest = make_key()
    lines = ["", "[[keys]]", f"name = {write_value(parsed.name)}", f'key = "{digest}"']
    if parsed.expires is not None:
        lines.append(f"expires = {parsed.expires:%Y-%m-%dT%H:%M:%SZ}")
    print("\n".join(lines), flush=True)
    print(f"The key of {parsed.name}, which is shown only now:\n{key}", file=sys.stderr)
    return 0


def _name(text: str) -> str:
    try:
        return check_caller_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"NAME {error}") from None


def _expiry(text: str) -> dt.datetime:
    now = dt.datetime.now(dt.UTC)
    try:
        if text.endswith("d"):
            expiry = now + dt.timedelta(days=int(text[:-1]))
        else:
            expiry = dt.datetime.fromisoformat(text)
            if len(text) == len("2027-01-31"):
                expiry = expiry.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            "must be days such as 90d, a date, or a time with a zone"
        ) from None
    if expiry.tzinfo is None:
        raise argparse.ArgumentTypeError("the time must have a zone, such as Z")
    if expiry <= now:
        raise argparse.ArgumentTypeError("must lie in the future")
    return expiry.astimezone(dt.UTC)
