"""The differences between families of encoders with rotary positions.

All have layers of attention and a gated feed-forward part, each with a residual connection and a
normalisation before or after it.

Source: names of tensors and keys as in Hugging Face transformers, which keeps those of the
published checkpoints.
"""

from dataclasses import dataclass

from embedgrpc.models.graphs.encoders.families import Classifier, TokenTypes


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix, or one of several that stand below one another in one tensor.

    Attributes:
        name: Name of the tensor, without its ending.
        place: Which one.
        of: How many there are, of the same size each.
    """

    name: str
    place: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class RotaryFamily:
    """The encoders of one kind: names of tensors, and how they compute.

    Attributes:
        prefixes: Prefixes of the backbone's tensors in a file that also holds a head.
        words: The table of token vectors.
        types: The table of token types; empty without one.
        token_types: The source of token types, if there is a table.
        embedding_norm: The normalisation after the tables.
        layer: Prefix of the tensors of one layer; `{}` is its number.
        packed: Attention's query, key and value.
        attended: The layer at the end of attention.
        attention_norm: The normalisation before or after attention.
        gate: The part of the feed-forward part that becomes the gate.
        values: The part that passes it.
        outer: The layer after the gate.
        output_norm: The normalisation before or after the feed-forward part.
        final_norm: The normalisation after all layers; empty if each layer ends with one. Layers
            of a family with it begin with one, except the first, which follows `embedding_norm`.
        classifier: The head of a cross-encoder or classifier.
        classifier_norm: The normalisation between both layers of the head; empty for none.
    """

    prefixes: tuple[str, ...]
    words: str
    types: str
    token_types: TokenTypes | None
    embedding_norm: str
    layer: str
    packed: str
    attended: str
    attention_norm: str
    gate: Part
    values: Part
    outer: str
    output_norm: str
    classifier: Classifier
    classifier_norm: str = ""
    final_norm: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, int64 [batch, tokens] each."""
        inputs = ("input_ids", "attention_mask")
        return (*inputs, "token_type_ids") if self.token_types is TokenTypes.INPUT else inputs


_POOLED = Classifier("pooler.dense", "Tanh", "classifier", in_backbone=True)
_GTE = RotaryFamily(
    prefixes=("gte.", "new."),
    words="embeddings.word_embeddings",
    types="embeddings.token_type_embeddings",
    token_types=TokenTypes.FIRST,
    embedding_norm="embeddings.LayerNorm",
    layer="encoder.layer.{}.",
    packed="attention.qkv_proj",
    attended="attention.o_proj",
    attention_norm="attn_ln",
    gate=Part("mlp.up_gate_proj", 1, 2),
    values=Part("mlp.up_gate_proj", 0, 2),
    outer="mlp.down_proj",
    output_norm="mlp_ln",
    classifier=_POOLED,
)

# By `model_type` of config.json.
ROTARY_FAMILIES = {
    "modernbert": RotaryFamily(
        prefixes=("model.",),
        words="embeddings.tok_embeddings",
        types="",
        token_types=None,
        embedding_norm="embeddings.norm",
        layer="layers.{}.",
        packed="attn.Wqkv",
        attended="attn.Wo",
        attention_norm="attn_norm",
        gate=Part("mlp.Wi", 0, 2),
        values=Part("mlp.Wi", 1, 2),
        outer="mlp.Wo",
        output_norm="mlp_norm",
        final_norm="final_norm",
        classifier=Classifier("head.dense", "", "classifier"),
        classifier_norm="head.norm",
    ),
    "nomic_bert": RotaryFamily(
        prefixes=("nomic_bert.", "bert."),
        words="embeddings.word_embeddings",
        types="embeddings.token_type_embeddings",
        token_types=TokenTypes.INPUT,
        embedding_norm="emb_ln",
        layer="encoder.layers.{}.",
        packed="attn.Wqkv",
        attended="attn.out_proj",
        attention_norm="norm1",
        gate=Part("mlp.fc12"),
        values=Part("mlp.fc11"),
        outer="mlp.fc2",
        output_norm="norm2",
        classifier=_POOLED,
    ),
    "gte": _GTE,
    # The name in the published configurations, whose code is not part of transformers.
    "new": _GTE,
}
