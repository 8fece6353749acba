"""Command lines that answer a misspelt word with "did you mean"."""

import argparse
import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NoReturn

_SHOWN_CHARACTERS_MAX: Final = 64


def suggest(word: str, known: Collection[str]) -> str:
    """Return "; did you mean X?" for the known word closest to `word`, "" where none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def quote(value: str) -> str:
    """Return a value as an error message may show it: quoted, escaped, at most 64 characters."""
    cut = (
        value if len(value) <= _SHOWN_CHARACTERS_MAX else f"{value[: _SHOWN_CHARACTERS_MAX - 3]}..."
    )
    return repr(cut)


def unknown_argument_error(where: str, unknown: Iterable[str], known: Collection[str]) -> TypeError:
    """Return the error for a keyword argument that nothing takes.

    Args:
        where: What was called.
        unknown: The arguments.
        known: Those that it takes.
    """
    name = next(iter(unknown))
    return TypeError(f"{where} has no argument {quote(name)}{suggest(name, known)}")


class SuggestingParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line and suggest the word that was meant."""

    def parse_known_args(  # type: ignore[override] # the base has overloads for `namespace`
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse arguments; exit with status 2 at an unknown option.

        `ArgumentParser` itself looks for missing arguments first, and so would report `--query`
        as missing where `--qurey` was given.
        """
        if args is not None:
            self._check_options(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print a line that names the help, and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _check_options(self, args: Sequence[str]) -> None:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in args:
            is_option = argument.startswith("--")
            if argument == "--" or (self._subparsers is not None and not is_option):
                return  # values follow, or the arguments of a subcommand
            name = argument.partition("=")[0]
            known = [one for one in options if one == name or self.allow_abbrev]
            if is_option and not any(option.startswith(name) for option in known):
                self.error(f"no option {quote(name)}{suggest(name, options)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            raise argparse.ArgumentError(
                action,
                f"no {quote(str(value))}{suggest(str(value), choices)}"
                f" (choose from {', '.join(choices)})",
            )
