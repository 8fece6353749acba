"""Reads the sizes of an encoder from `config.json`."""

from dataclasses import dataclass

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS
from embedgrpc.models.graphs.encoders.families import Family


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes of an encoder.

    Attributes:
        hidden_size: Values per token vector.
        embedding_size: Values per row of the tables, before the projection.
        layers: The number of layers.
        heads: Attention heads per layer.
        intermediate_size: Values per token inside a layer's feed-forward part.
        vocabulary_size: Rows of the token table.
        positions: Rows of the position table.
        token_types: Rows of the token type table; 0 without one.
        padding_id: The padding token.
        epsilon: The epsilon of layer normalisations.
        activation: The activation function of feed-forward layers.
    """

    hidden_size: int
    embedding_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocabulary_size: int
    positions: int
    token_types: int
    padding_id: int
    epsilon: float
    activation: str

    @classmethod
    def read(cls, config: JsonObject, family: Family) -> "EncoderConfig":
        """Read `config.json`, whose keys depend on the family.

        Raises:
            ModelError: A key is missing, or its value is not supported.
        """
        keys = family.keys
        if config.text("position_embedding_type", default="absolute") != "absolute":
            raise config.wrong("position_embedding_type", "absolute")
        for key in ("is_decoder", "add_cross_attention"):
            if config.flag(key, default=False):
                raise config.wrong(key, "false")
        for key, only in family.fixed_counts:
            if config.count(key) not in {None, only}:
                raise config.wrong(key, str(only))
        embedding_key = "embedding_size" if family.projection else keys.hidden_size
        sizes = cls(
            hidden_size=config.size(keys.hidden_size),
            embedding_size=config.size(embedding_key),
            layers=config.size(keys.layers),
            heads=config.size(keys.heads),
            intermediate_size=config.size(keys.intermediate_size),
            vocabulary_size=config.size("vocab_size"),
            positions=config.size("max_position_embeddings"),
            token_types=config.size("type_vocab_size") if family.token_types else 0,
            padding_id=family.padding_id or config.count("pad_token_id") or 0,
            epsilon=read_epsilon(config, keys.epsilon),
            activation=read_activation(config, keys.activation, default=family.activation),
        )
        if sizes.hidden_size % sizes.heads:
            raise config.wrong(keys.hidden_size, f"a multiple of {keys.heads}")
        return sizes


def read_activation(config: JsonObject, key: str, *, default: str) -> str:
    """Return the name of an activation function.

    Raises:
        ModelError: It is not known.
    """
    name = config.text(key, default=default)
    if name not in ACTIVATIONS:
        raise config.wrong(key, "one of " + ", ".join(ACTIVATIONS))
    return name


def read_epsilon(config: JsonObject, key: str, *, default: float = 1e-12) -> float:
    """Return the epsilon of layer normalisations.

    Raises:
        ModelError: It is not between 0 and 1.
    """
    epsilon = config.values.get(key, default)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise config.wrong(key, "a small number")
    return epsilon
