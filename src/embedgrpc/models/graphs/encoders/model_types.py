"""Lists the models whose graph can be built from weights.

Does not import the `onnx` package, which a start from the cache does not need.
"""

from collections.abc import Mapping

from embedgrpc.models.graphs.encoders.decoder_families import DECODERS
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.graphs.encoders.rotary_families import ROTARY_FAMILIES

# The names of the graph's inputs, int64 [batch, tokens] each, by the `model_type` of config.json.
INPUTS: Mapping[str, tuple[str, ...]] = {
    **{name: family.inputs for name, family in FAMILIES.items()},
    **{name: family.inputs for name, family in ROTARY_FAMILIES.items()},
    **dict.fromkeys(DECODERS, ("input_ids", "attention_mask")),
}
