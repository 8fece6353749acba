"""The settings that override or complete a model's own files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.logit_score import find_logit_score
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.kinds import (
    Activation,
    Kind,
    PaddingSide,
    PairTemplate,
    Pooling,
    Similarity,
    WeightType,
)

# The keys that architectures use for the size of their token vectors.
HIDDEN_SIZE_KEYS = ("hidden_size", "dim", "n_embd", "d_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOverrides:
    """Settings of one model; where one is None or empty, the model's files count.

    Attributes:
        pooling: In order of concatenation.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: The longest sequence, special tokens included.
        prompts: By name; added to the prompts of the files, or instead of one of the same name.
        default_prompt_name: The prompt for requests that name none; "" for no prompt.
        padding_side: The side of a text on which padding goes.
        pad_token_id: The padding token.
        similarity: How to compare two vectors.
        lowercase: Whether texts are lowercased first.
        activation: The function from the logits of a cross-encoder or classifier to its scores.
        file: The file of weights, relative to the backbone's folder: an ONNX graph, which may be
            quantised, or safetensors.
        output: The output of an ONNX graph that holds the token vectors, the pooled vector or the
            logits.
        task_id: The input of a graph that chooses a task by number, for all texts; instead of the
            task that the name of a request's prompt chooses.
        pair_template: How a causal reranker gets its query and document, if its files do not say.
        true_token: The token whose logit a causal reranker scores by.
        false_token: The token whose logit is subtracted.
        accept_unknown_keys: Whether keys of the files are accepted that are not known to change
            results or to be harmless.
        adapter: The source of a LoRA adapter to merge into the weights. `resolve` downloads one of
            the Hub; its folder is then the one of the files.
        weight_type: The type to compute in. Any other than float32 changes the vectors.
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
    pair_template: PairTemplate | None = None
    true_token: str = ""
    false_token: str = ""
    accept_unknown_keys: bool = False
    adapter: str = ""
    weight_type: WeightType = WeightType.FLOAT32


def override_modules(
    modules: Modules, config: JsonObject, root: Path, overrides: ModelOverrides
) -> Modules:
    """Return the modules with the configured pooling, normalisation and scoring tokens.

    Args:
        modules: The content of `modules.json`.
        config: `config.json`.
        root: The model's folder.
        overrides: The configuration.

    Raises:
        ModelError: The configuration does not fit, or is incomplete.
    """
    if overrides.pooling:
        modules = _override_pooling(modules, config, overrides)
    if overrides.normalize is not None and modules.poolings:
        modules = replace(modules, normalize=overrides.normalize)
    return replace(
        modules,
        logit_score=find_logit_score(
            modules.logit_score,
            config,
            root,
            template=overrides.pair_template,
            true_token=overrides.true_token,
            false_token=overrides.false_token,
        ),
    )


def _override_pooling(modules: Modules, config: JsonObject, overrides: ModelOverrides) -> Modules:
    if modules.splade is not None:
        raise ModelError(f"{config.path.parent}: pooling is set, but the model is a SparseEncoder")
    if modules.mask is not None or (modules.layers and not modules.poolings):
        raise ModelError(
            f"{config.path.parent}: pooling is set, but the model has one vector for each token"
        )
    if modules.poolings:
        changed = replace(modules, poolings=overrides.pooling)
        layer = next(iter(modules.layers), None)
        pooled = modules.token_dimensions * len(overrides.pooling)
        if layer is not None and layer.in_features != pooled:
            raise ModelError(
                f"{layer.folder / 'config.json'}: the module needs {layer.in_features} values, but "
                f"the pooling that is set returns {pooled}"
            )
        return changed
    if overrides.normalize is None:
        raise ModelError(
            f"{config.path.parent / 'modules.json'} is missing: set normalize in addition to "
            "pooling for this model in the configuration"
        )
    key = next((key for key in HIDDEN_SIZE_KEYS if key in config.values), HIDDEN_SIZE_KEYS[0])
    return replace(modules, poolings=overrides.pooling, token_dimensions=config.size(key))


def check_kind(kind: Kind, folder: str, overrides: ModelOverrides) -> None:
    """Check that no setting of the other kind is set.

    Raises:
        ModelError: One is set.
    """
    if kind is Kind.EMBEDDING:
        wrong = "activation" if overrides.activation is not None else ""
    else:
        wrong = "normalize" if overrides.normalize is not None else ""
    if wrong:
        raise ModelError(f"{folder}: {wrong} is set, but the model's kind is {kind}")
    if kind is Kind.CROSS_ENCODER and overrides.activation is Activation.SOFTMAX:
        raise ModelError(f"{folder}: activation is set to softmax, which needs several labels")
