"""Builds the backbone of a model by its `model_type`."""

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders import decoder, encoder
from embedgrpc.models.graphs.encoders.decoder_families import DECODERS
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.graphs.encoders.rotary_encoder import build_rotary_encoder
from embedgrpc.models.graphs.encoders.rotary_families import ROTARY_FAMILIES
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.tensors.weights import Tensors


def build_backbone(
    writer: GraphWriter, tensors: Tensors, config: JsonObject, *, has_unattended: bool = False
) -> str:
    """Append the backbone of a model to a graph with the inputs of its `model_type`.

    Args:
        writer: The graph's writer.
        tensors: The weights.
        config: `config.json`.
        has_unattended: Whether vectors count of tokens at the end that no token sees.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size].

    Raises:
        ModelError: The weights do not fit `config.json`, or a value in it is not supported.
    """
    model_type = config.text("model_type", default="")
    if model_type in DECODERS:
        return decoder.build_decoder(
            writer, tensors, config, DECODERS[model_type], has_unattended=has_unattended
        )
    if model_type in ROTARY_FAMILIES:
        return build_rotary_encoder(
            writer, tensors, config, ROTARY_FAMILIES[model_type], has_unattended=has_unattended
        )
    return encoder.build(writer, tensors, config, FAMILIES[model_type])
