"""Types of numbers in bodies."""

from typing import Annotated, TypeAlias

import msgspec

# The whole numbers of the contract.
Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
