"""Numbers as JSON, with as few digits as they need to be read back unchanged."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def short_floats(numbers: NDArray[Any]) -> Any:
    """Return an array as lists of numbers that take few digits as JSON.

    They are the float64 closest to the shortest decimal number that is read back as the float32.
    """
    if numbers.dtype.kind != "f":
        return numbers.tolist()
    return numbers.astype(np.str_).astype(np.float64).tolist()


def json_numbers(numbers: NDArray[Any] | np.generic) -> str:
    """Return an array of finite numbers of any shape as JSON.

    A float32 takes at most nine digits, half of those that the same number as a float64 takes.
    """
    if numbers.ndim > 1:
        return f"[{', '.join(json_numbers(row) for row in numbers)}]"  # type: ignore[union-attr]
    if numbers.dtype.kind != "f":
        return repr(numbers.tolist())
    if numbers.ndim == 0:
        return str(numbers)
    return f"[{', '.join(numbers.astype(np.str_).tolist())}]"
