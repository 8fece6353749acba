"""Numbers on the command line."""

import argparse
import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from embedgrpc.client.suggestions import quote

NumberT = TypeVar("NumberT", int, float)

_INT32_MAX: Final = 2**31 - 1


def at_least(least: NumberT) -> Callable[[str], NumberT]:
    """Return a parser of numbers from `least` to the largest int32, of the type of `least`."""

    def parse(value: str) -> NumberT:
        with contextlib.suppress(ValueError):
            number = type(least)(value)
            if least <= number <= _INT32_MAX:
                return number
        kind = "a whole number" if type(least) is int else "a number"
        raise argparse.ArgumentTypeError(
            f"{quote(value)} is not {kind} from {least} to {_INT32_MAX}"
        )

    return parse
