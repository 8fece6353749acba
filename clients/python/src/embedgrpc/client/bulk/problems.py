"""What a run refuses before it begins, and the libraries that only some files need."""

from importlib import import_module
from types import ModuleType


class UsageError(ValueError):
    """The command, an input or an output made with other options does not allow the run.

    The message names the file, the column or the option, and never holds a text.
    """


def arrow(name: str, need: str) -> ModuleType:
    """Import a module of pyarrow, which only some formats need.

    Args:
        name: The module, such as "pyarrow.parquet".
        need: What needs it, for the error.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f'{need} needs pyarrow: pip install "embedgrpc-client[bulk]"') from error
