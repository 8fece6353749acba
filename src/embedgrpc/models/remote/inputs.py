"""Makes the inputs of a model on a server other than ids, mask and types."""

from collections.abc import Iterable

import numpy as np

from embedgrpc.libraries.arrays import IntArray, MakeInput
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.limits import OFFSET_POSITIONS
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.tokenizers.token_types import needs_types

_TYPES = "token_type_ids"
_SERVED = frozenset({"input_ids", "attention_mask", _TYPES})
_POSITIONS = "position_ids"


def plan_inputs(
    names: Iterable[str], properties: ModelProperties, *, model: str
) -> dict[str, MakeInput]:
    """Return how to make each input other than ids, mask and types.

    Args:
        names: The inputs of the served model.
        properties: The model's properties.
        model: The model's name on the server, for messages.

    Raises:
        ModelError: An input is not supported.
    """
    if properties.tasks:
        raise ModelError(
            f"{properties.transformer_folder / 'config.json'}: lora_adaptations names tasks, but a "
            f"request to Triton cannot choose one: set task_id for this model in the "
            f"configuration to the task that {model} computes"
        )
    if not properties.include_prompt:
        raise ModelError(
            f"{properties.transformer_folder}: include_prompt of the Pooling module is false, and "
            "a request to Triton cannot say which tokens belong to a prompt: serve this model here"
        )
    names = tuple(names)
    if _TYPES not in names and needs_types(properties):
        raise ModelError(
            f"the model {model} on Triton has no input {_TYPES!r}, which the model"
            " needs (config.json: type_vocab_size) and its tokenizer fills: export it again"
        )
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
        # Such models compare ids: a padding token that a text spells out has no position.
        real = (ids != padding).astype(np.int64)
        return np.asarray(real.cumsum(axis=1) * real + padding, np.int64)

    return count_after_padding if properties.model_type in OFFSET_POSITIONS else count
