"""What the configuration says about a model, instead of the model's own files or beyond them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.kinds import (
    Activation,
    Kind,
    PaddingSide,
    Pooling,
    Similarity,
    WeightType,
)

# Where architectures keep the length of their token vectors.
_HIDDEN_SIZE_KEYS = ("hidden_size", "dim", "n_embd", "d_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOverrides:
    """Settings of one model; each that is None or empty leaves what the model's files say.

    Attributes:
        pooling: How token vectors become one, in order of concatenation.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: The longest sequence, special tokens included.
        prompts: By name; added to those of the files, in place of those of the same name.
        default_prompt_name: The prompt to take where none is asked for; "" for none.
        padding_side: Where padding goes.
        pad_token_id: The token that fills it.
        similarity: How two vectors are meant to be compared.
        lowercase: Whether texts are lowercased before anything else.
        activation: What turns a cross-encoder's logit into its score.
        file: The file of weights to take, relative to the folder of the backbone: an ONNX graph,
            which may be quantised, or safetensors.
        output: The output of an ONNX graph that holds the token vectors, the pooled vector or the
            logits.
        task_id: What to feed a graph that chooses a task by number.
        weight_type: What to compute in. Another than float32 changes the vectors.
    """

    pooling: tuple[Pooling, ...] = ()
    normalize: bool | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    padding_side: PaddingSide | None = None
    pad_token_id: int | None = None
    similarity: Similarity | None = None
    lowercase: bool | None = None
    activation: Activation | None = None
    file: str = ""
    output: str = ""
    task_id: int | None = None
    weight_type: WeightType = WeightType.FLOAT32


def override_modules(modules: Modules, config: JsonObject, overrides: ModelOverrides) -> Modules:
    """Changes what is done with the token vectors as the configuration wants it.

    Args:
        modules: What `modules.json` says.
        config: `config.json`.
        overrides: Of the configuration.

    Returns:
        The modules.

    Raises:
        ModelError: The configuration does not fit, or does not say enough.
    """
    if overrides.pooling:
        modules = _override_pooling(modules, config, overrides)
    if overrides.normalize is not None and modules.poolings:
        modules = replace(modules, normalize=overrides.normalize)
    return modules


def _override_pooling(modules: Modules, config: JsonObject, overrides: ModelOverrides) -> Modules:
    if modules.splade is not None:
        raise ModelError(f"{config.path.parent}: pooling is set, but the model is a SparseEncoder")
    if modules.poolings:
        changed = replace(modules, poolings=overrides.pooling)
        layer = next(iter(modules.layers), None)
        pooled = modules.token_dimensions * len(overrides.pooling)
        if layer is not None and layer.in_features != pooled:
            raise ModelError(
                f"{layer.folder / 'config.json'}: the module takes {layer.in_features} values, but "
                f"the pooling that is set gives {pooled}"
            )
        return changed
    if overrides.normalize is None:
        raise ModelError(
            f"{config.path.parent / 'modules.json'} is missing: set normalize beside pooling for "
            "this model in the configuration"
        )
    key = next((key for key in _HIDDEN_SIZE_KEYS if key in config.values), _HIDDEN_SIZE_KEYS[0])
    return replace(modules, poolings=overrides.pooling, token_dimensions=config.size(key))


def check_kind(kind: Kind, folder: str, overrides: ModelOverrides) -> None:
    """Checks that settings which only some models have are not set for others.

    Raises:
        ModelError: One is.
    """
    if kind is Kind.CROSS_ENCODER:
        wrong = "normalize" if overrides.normalize is not None else ""
    else:
        wrong = "activation" if overrides.activation is not None else ""
    if wrong:
        raise ModelError(f"{folder}: {wrong} is set, but the model is of the kind {kind}")
