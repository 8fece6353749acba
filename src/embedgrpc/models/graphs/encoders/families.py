"""The names of encoders' tensors, and the differences between families.

All have the same structure: layers of attention and a feed-forward part, each followed by a
residual connection and a layer normalisation.

Source: names of tensors and keys as in Hugging Face transformers.
"""

from dataclasses import dataclass
from enum import Enum


class Positions(Enum):
    """How positions are numbered."""

    FROM_START = "all tokens, from 0"
    AFTER_PADDING = "real tokens only, from the padding id + 1"


class TokenTypes(Enum):
    """The source of the row in the token type table."""

    INPUT = "an input of the graph"
    FIRST = "always the first row"


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """Keys of `config.json`; that of the epsilon is empty if the architecture has a fixed one."""

    hidden_size: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"
    activation: str = "hidden_act"
    epsilon: str = "layer_norm_eps"


@dataclass(frozen=True, slots=True)
class Classifier:
    """The head that scores a sequence by its first token: two layers.

    Attributes:
        dense: Name of the first layer.
        activation: The ONNX operator that follows it.
        out: Name of the second layer.
        in_backbone: Whether the first layer's name has the prefix of the backbone.
    """

    dense: str
    activation: str
    out: str
    in_backbone: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The encoders of one kind: names of tensors, and how they compute.

    Attributes:
        prefix: Prefix of the backbone's tensors in a file that also holds a head.
        layer: Prefix of the tensors of one layer; `{}` is its number.
        query: Attention's query.
        key: Attention's key.
        value: Attention's value.
        attended: The layer at the end of attention.
        attention_norm: The normalisation after attention.
        inner: The first layer of the feed-forward part.
        outer: Its second layer.
        output_norm: The normalisation after it.
        classifier: The head of a cross-encoder or classifier.
        keys: The keys of `config.json`.
        activation: The activation function if `config.json` has none.
        positions: How positions are numbered.
        padding_id: The padding token; None for that of `config.json`.
        token_types: The source of token types; None without such a table.
        projection: The layer between tables and encoder, if rows may be shorter; empty without.
        relative: The table of biases by distance; empty without one.
        fixed_counts: Keys of `config.json` with the only value that is supported.
    """

    prefix: str
    layer: str
    query: str
    key: str
    value: str
    attended: str
    attention_norm: str
    inner: str
    outer: str
    output_norm: str
    classifier: Classifier
    keys: ConfigKeys = ConfigKeys()
    activation: str = "gelu"
    positions: Positions = Positions.FROM_START
    padding_id: int | None = None
    token_types: TokenTypes | None = None
    projection: str = ""
    relative: str = ""
    fixed_counts: tuple[tuple[str, int], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, int64 [batch, tokens] each."""
        inputs = ("input_ids", "attention_mask")
        return (*inputs, "token_type_ids") if self.token_types is TokenTypes.INPUT else inputs


_ROBERTA_CLASSIFIER = Classifier("classifier.dense", "Tanh", "classifier.out_proj")


def _bert(
    prefix: str,
    classifier: Classifier,
    *,
    positions: Positions = Positions.FROM_START,
    token_types: TokenTypes = TokenTypes.INPUT,
    projection: str = "",
) -> Family:
    return Family(
        prefix=prefix,
        layer="encoder.layer.{}.",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attended="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        inner="intermediate.dense",
        outer="output.dense",
        output_norm="output.LayerNorm",
        classifier=classifier,
        positions=positions,
        token_types=token_types,
        projection=projection,
    )


_ROBERTA = _bert(
    "roberta.",
    _ROBERTA_CLASSIFIER,
    positions=Positions.AFTER_PADDING,
    token_types=TokenTypes.FIRST,
)
_DISTILBERT = Family(
    prefix="distilbert.",
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attention_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    output_norm="output_layer_norm",
    classifier=Classifier("pre_classifier", "Relu", "classifier"),
    keys=ConfigKeys("dim", "n_layers", "n_heads", "hidden_dim", "activation", epsilon=""),
)
_MPNET = Family(
    prefix="mpnet.",
    layer="encoder.layer.{}.",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attended="attention.attn.o",
    attention_norm="attention.LayerNorm",
    inner="intermediate.dense",
    outer="output.dense",
    output_norm="output.LayerNorm",
    classifier=_ROBERTA_CLASSIFIER,
    positions=Positions.AFTER_PADDING,
    padding_id=1,
    relative="encoder.relative_attention_bias.weight",
    fixed_counts=(("relative_attention_num_buckets", 32),),
)
_ALBERT = Family(
    prefix="albert.",
    # All layers share their weights.
    layer="encoder.albert_layer_groups.0.albert_layers.0.",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attended="attention.dense",
    attention_norm="attention.LayerNorm",
    inner="ffn",
    outer="ffn_output",
    output_norm="full_layer_layer_norm",
    classifier=Classifier("pooler", "Tanh", "classifier", in_backbone=True),
    activation="gelu_new",
    token_types=TokenTypes.INPUT,
    projection="encoder.embedding_hidden_mapping_in",
    fixed_counts=(("num_hidden_groups", 1), ("inner_group_num", 1)),
)

# By `model_type` of config.json.
FAMILIES = {
    "bert": _bert("bert.", Classifier("pooler.dense", "Tanh", "classifier", in_backbone=True)),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "electra": _bert(
        "electra.",
        Classifier("classifier.dense", "Gelu", "classifier.out_proj"),
        projection="embeddings_project",
    ),
    "albert": _ALBERT,
}
