"""Fills the inputs that a model on a server takes beside ids, mask and types."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.limits import OFFSET_POSITIONS
from embedgrpc.models.folder.properties import ModelProperties

IntArray = NDArray[np.int64]
# From ids and mask, int64 [batch, tokens] each, to an input of the same shape.
MakeInput = Callable[[IntArray, IntArray], IntArray]

_SERVED = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_POSITIONS = "position_ids"


def plan_inputs(
    names: Iterable[str], properties: ModelProperties, *, model: str
) -> dict[str, MakeInput]:
    """Finds how each further input is filled.

    Args:
        names: The inputs that the server wants.
        properties: What the model is.
        model: What the server calls it, for messages.

    Raises:
        ModelError: Nothing says how to fill one of them.
    """
    made: dict[str, MakeInput] = {}
    for name in names:
        if name == _POSITIONS:
            made[name] = _find_positions(properties)
        elif name not in _SERVED:
            raise ModelError(
                f"the model {model} on Triton has an input {name!r}, which is not supported"
            )
    return made


def _find_positions(properties: ModelProperties) -> MakeInput:
    padding = properties.pad_token_id

    def count(ids: IntArray, mask: IntArray) -> IntArray:
        del ids
        return np.asarray(np.maximum(mask.cumsum(axis=1) - 1, 0), np.int64)

    def count_after_padding(ids: IntArray, mask: IntArray) -> IntArray:
        del mask
        # These look at the ids: a text that spells out the padding token has no position for it.
        real = (ids != padding).astype(np.int64)
        return np.asarray(real.cumsum(axis=1) * real + padding, np.int64)

    return count_after_padding if properties.model_type in OFFSET_POSITIONS else count
