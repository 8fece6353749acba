"""Names of the contract's fields in errors, for protocols that have other names."""

from collections.abc import Mapping

from embedgrpc.engine.errors import EngineError


def rename_fields(error: EngineError, names: Mapping[str, str]) -> None:
    """Replace the names of the contract's fields in an error by those of a dialect.

    Args:
        error: The error.
        names: What the beginning of a field's name becomes.
    """
    for old, new in names.items():
        if error.field.startswith(old):
            renamed = new + error.field.removeprefix(old)
            error.message = error.message.replace(error.field, renamed)
            error.field = renamed
            return
