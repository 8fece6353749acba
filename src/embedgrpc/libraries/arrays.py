"""The types of the arrays that models take and return, and of functions that make them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# From token ids and mask, int64 [batch, tokens] each, to an input of the same shape.
MakeInput = Callable[[IntArray, IntArray], IntArray]
# From an output of a server, float32, and the mask, int64 [batch, tokens], to one of ours.
MakeOutput = Callable[[FloatArray, IntArray], FloatArray]
