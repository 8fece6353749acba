"""The names and shapes of an encoder's tensors."""

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.config import EncoderConfig
from embedgrpc.models.graphs.encoders.families import Family
from embedgrpc.models.graphs.encoders.relative_positions import BUCKETS
from embedgrpc.models.tensors.weights import Tensors

Shapes = dict[str, tuple[int, ...]]


def check_layer_count(tensors: Tensors, config: JsonObject, key: str) -> None:
    """Check the number of layers against the file, before the tensors of each are listed.

    Raises:
        ModelError: The file has fewer tensors than `config.json` has layers.
    """
    layers = config.size(key)
    if layers > len(tensors.names):
        raise config.wrong(
            key,
            f"the number of layers of {tensors.path}, which has {len(tensors.names)} tensors, "
            f"not {layers}",
        )


def encoder_shapes(
    config: EncoderConfig, family: Family, prefix: str, norm_names: tuple[str, str]
) -> Shapes:
    """Return the shape of each tensor of a backbone.

    Args:
        config: The sizes.
        family: The family.
        prefix: The prefix of all names.
        norm_names: The names of scale and shift in layer normalisations.
    """
    size, inner, short = config.hidden_size, config.intermediate_size, config.embedding_size
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config.vocabulary_size, short),
        "embeddings.position_embeddings.weight": (config.positions, short),
    }
    norms = {"embeddings.LayerNorm": short}
    linears: Shapes = {}
    if family.token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (config.token_types, short)
    if short != size:
        linears[family.projection] = (size, short)
    if family.relative:
        shapes[family.relative] = (BUCKETS, config.heads)
    for number in range(config.layers):
        layer = family.layer.format(number)
        for name in (family.query, family.key, family.value, family.attended):
            linears[layer + name] = (size, size)
        linears[layer + family.inner] = (inner, size)
        linears[layer + family.outer] = (size, inner)
        norms |= dict.fromkeys((layer + family.attention_norm, layer + family.output_norm), size)
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    for name, length in norms.items():
        shapes |= {f"{name}.{part}": (length,) for part in norm_names}
    return {prefix + name: shape for name, shape in shapes.items()}


def classifier_shapes(config: EncoderConfig, dense: str, out: str, label_count: int) -> Shapes:
    """Return the shape of each tensor of a classifier of two layers."""
    size = config.hidden_size
    return {
        f"{dense}.weight": (size, size),
        f"{dense}.bias": (size,),
        f"{out}.weight": (label_count, size),
        f"{out}.bias": (label_count,),
    }
