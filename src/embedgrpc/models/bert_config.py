"""Reads the `config.json` of BERT."""

from dataclasses import dataclass

from embedgrpc.models.activations import ACTIVATIONS
from embedgrpc.models.json_file import JsonObject


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The sizes of a BERT model.

    Attributes:
        hidden_size: Values per token vector.
        layers: How many there are.
        heads: Attention heads per layer.
        intermediate_size: Values per token inside a layer's feed-forward part.
        vocabulary_size: Rows of the token table.
        positions: Rows of the position table.
        token_types: Rows of the token type table.
        epsilon: Of the layer normalisations.
        activation: Of the feed-forward parts.
    """

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocabulary_size: int
    positions: int
    token_types: int
    epsilon: float
    activation: str

    @classmethod
    def read(cls, config: JsonObject) -> "BertConfig":
        """Reads `config.json`.

        Raises:
            ModelError: A key is missing, or asks for what is not supported.
        """
        if config.text("position_embedding_type", default="absolute") != "absolute":
            raise config.wrong("position_embedding_type", "absolute")
        for key in ("is_decoder", "add_cross_attention"):
            if config.flag(key, default=False):
                raise config.wrong(key, "false")
        activation = config.text("hidden_act", default="gelu")
        if activation not in ACTIVATIONS:
            raise config.wrong("hidden_act", "one of " + ", ".join(ACTIVATIONS))
        epsilon = config.values.get("layer_norm_eps", 1e-12)
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise config.wrong("layer_norm_eps", "a small number")
        sizes = cls(
            hidden_size=config.size("hidden_size"),
            layers=config.size("num_hidden_layers"),
            heads=config.size("num_attention_heads"),
            intermediate_size=config.size("intermediate_size"),
            vocabulary_size=config.size("vocab_size"),
            positions=config.size("max_position_embeddings"),
            token_types=config.size("type_vocab_size"),
            epsilon=epsilon,
            activation=activation,
        )
        if sizes.hidden_size % sizes.heads:
            raise config.wrong("hidden_size", "a multiple of num_attention_heads")
        return sizes
