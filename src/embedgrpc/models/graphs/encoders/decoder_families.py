"""The differences between families of decoders.

All have the same structure: layers of attention and a gated feed-forward part, each after a
normalisation and followed by a residual connection, and one more normalisation at the end.

Source: names of tensors and keys as in Hugging Face transformers.
"""

from dataclasses import dataclass
from enum import Enum

# The key of `config.json` for the largest logit of the vocabulary's head, which bends the others.
CAP_KEY = "final_logit_softcapping"


class Windows(Enum):
    """How `config.json` says which layers see the nearest tokens only."""

    NONE = "no layer"
    LAST = "use_sliding_window, from the layer max_window_layers on, or layer_types"
    ALL = "every layer, if sliding_window is set"
    PATTERN = "layer_types, or all but every sliding_window_pattern-th layer"


@dataclass(frozen=True, slots=True)
class DecoderFamily:
    """The decoders of one kind: how they compute.

    Attributes:
        windows: Which layers see the nearest tokens only.
        activation_key: The key of `config.json` for the gate's activation function.
        activation: That function if the key is absent.
        head_size: Values per head if `config.json` has no `head_dim`; 0 for `hidden_size` over the
            number of heads.
        input_bias: Whether queries, keys and values always have a bias.
        bias_key: The key that gives all products of attention a bias; empty if there is none.
        head_norms: Whether the queries and keys of each head are normalised.
        offset_norms: Whether normalisations multiply by 1 + their weight.
        outer_norms: Whether there is also a normalisation after each part.
        scaled_embeddings: Whether embeddings are multiplied by the root of `hidden_size`.
        scalar_key: The key whose inverse root scales scores; empty for the size of a head.
        local_base: The base of the rotation in layers with a window; 0 for that of all layers.
        base: The base of the rotation if `config.json` has none.
        tanh_gelu: Whether the activation function called gelu is its approximation by tanh.
        bidirectional_key: The key that lets all tokens see each other, and halves windows; empty
            if there is none.
    """

    windows: Windows
    activation_key: str = "hidden_act"
    activation: str = "silu"
    head_size: int = 0
    input_bias: bool = False
    bias_key: str = ""
    head_norms: bool = False
    offset_norms: bool = False
    outer_norms: bool = False
    scaled_embeddings: bool = False
    scalar_key: str = ""
    local_base: float = 0.0
    base: float = 10_000.0
    tanh_gelu: bool = False
    bidirectional_key: str = ""


# By `model_type` of config.json.
DECODERS = {
    "qwen2": DecoderFamily(windows=Windows.LAST, input_bias=True),
    "qwen3": DecoderFamily(
        windows=Windows.LAST, head_size=128, bias_key="attention_bias", head_norms=True
    ),
    "mistral": DecoderFamily(windows=Windows.ALL),
    "gemma": DecoderFamily(
        windows=Windows.NONE,
        activation="gelu_pytorch_tanh",
        head_size=256,
        bias_key="attention_bias",
        offset_norms=True,
        scaled_embeddings=True,
        tanh_gelu=True,
    ),
    "gemma3_text": DecoderFamily(
        windows=Windows.PATTERN,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        head_size=256,
        bias_key="attention_bias",
        head_norms=True,
        offset_norms=True,
        outer_norms=True,
        scaled_embeddings=True,
        scalar_key="query_pre_attn_scalar",
        local_base=10_000.0,
        base=1_000_000.0,
        bidirectional_key="use_bidirectional_attention",
    ),
}
