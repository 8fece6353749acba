"""Reads the properties of a model from its files.

Nothing is guessed: if a property is missing, the error names the file that should contain it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.adapter import Adapter, find_adapter
from embedgrpc.models.folder.key_verdicts import (
    check_keys,
    judge_folder,
    summarize,
)
from embedgrpc.models.folder.known_keys import ADAPTER
from embedgrpc.models.folder.labels import has_labels, read_labels
from embedgrpc.models.folder.late_interaction import (
    LateInteraction,
    add_prefixes,
    complete_late,
    find_late_interaction,
    is_late_interaction,
)
from embedgrpc.models.folder.limits import (
    TokenLimit,
    TransformerSettings,
    find_max_tokens,
    read_transformer_settings,
)
from embedgrpc.models.folder.logit_score import LogitScore, published_activation
from embedgrpc.models.folder.model_kind import find_kind, read_architectures
from embedgrpc.models.folder.modules import Modules, read_modules
from embedgrpc.models.folder.overrides import ModelOverrides, check_kind, override_modules
from embedgrpc.models.folder.padding import find_pad_token_id, find_padding_side
from embedgrpc.models.folder.prompts import (
    TASKS_KEY,
    find_default_prompt_name,
    read_prompts,
    read_tasks,
)
from embedgrpc.models.folder.provenance import Provenance
from embedgrpc.models.folder.representations import ServedTokenOutputs, find_representations
from embedgrpc.models.folder.routing import Route
from embedgrpc.models.folder.scoring import (
    activation_places,
    read_activation,
    read_score_function,
    read_similarity,
)
from embedgrpc.models.folder.splade_config import SpladePooling
from embedgrpc.models.folder.table_settings import (
    check_table_overrides,
    find_table_limit,
    find_table_truncation,
)
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.transformer_keys import merge_arguments
from embedgrpc.models.folder.truncation_side import find_truncation
from embedgrpc.models.folder.verdict import judge
from embedgrpc.models.folder.weight_table import WeightTable
from embedgrpc.models.kinds import (
    Activation,
    Kind,
    PaddingSide,
    PairTemplate,
    Pooling,
    Representation,
    Similarity,
    Truncation,
    WeightType,
)
from embedgrpc.models.sources.config_files import ADAPTER_NAME, CONFIG_NAME
from embedgrpc.models.sources.fetching import fetch_adapter
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import choose_weights
from embedgrpc.models.tensors.token_heads import TokenHead
from embedgrpc.models.tensors.vector_layers import VectorLayer

# What sentence-transformers calls it.
_CAUSAL_TASK = "text-generation"


@dataclass(frozen=True, slots=True)
class ModelProperties:
    """The properties of a model.

    Attributes:
        model_type: The architecture, as `config.json` names it.
        poolings: In order of concatenation; only an embedding model has any.
        normalize: Whether vectors are scaled to length 1.
        token_dimensions: Values per token vector of the backbone, from the Pooling module; 0
            without one.
        dimensions: Values per vector of the graph; 0 without vectors.
        max_tokens: The longest sequence, special tokens included.
        prompts: By name; a prompt is put in front of a text.
        default_prompt_name: The prompt for requests that name none; empty for no prompt.
        config: `config.json`.
        activation: What turns a logit into the score of a document; of a classifier, the same as
            `score_function`.
        representations: The default first; only an embedding model has any.
        sparse_dimensions: Entries of the vocabulary; 0 without sparse vectors.
        multi_vector_dimensions: Values per vector of a token; 0 without multi-vectors.
        folder: The model's folder; nothing outside of it is read.
        transformer_folder: Contains `config.json`, `tokenizer.json` and the weights.
        dense_layers: Dense and LayerNorm modules between pooling and normalisation, in order; of
            a model of late interaction, those that each token vector passes.
        lowercase: Whether texts are lowercased first.
        truncation: The end of a text that is cut if the text is too long: START or END; NONE if
            the reference has no limit, so that such a text is refused.
        file: The configured file of weights, relative to `transformer_folder`; mostly empty.
        output: The configured output of an ONNX graph; mostly empty.
        task_id: The input of a graph that chooses a task by number, for all texts.
        tasks: The task by the name of a prompt, for a graph with such an input; empty if there is
            one task for all texts, or none.
        weight_type: The type that the graph computes in.
        pooling_is_set: Whether the configuration sets the pooling. A graph that pools by itself
            may then differ from `modules.json`.
        include_prompt: Whether the tokens of a prompt are pooled. If not, they still take part in
            attention, and the graph has an input `prompt_tokens`, int64 [batch].
        splade: The SpladePooling module, if any.
        table: The table that a static model has in place of a backbone, if any.
        weight_table: The table of inference-free SPLADE in place of a backbone, if any.
        sparse_head: The layer that makes token weights, if any.
        multi_vector_head: The layer that makes multi-vectors, if any.
        unweighted_token_ids: Tokens that sparse vectors leave out.
        multi_vector_skip_tokens: Tokens at the start that multi-vectors leave out.
        late_interaction: How queries and documents are computed by a model that has one vector
            for each token and no other; None for other models.
        labels: The labels of a classifier or cross-encoder, in the order of its logits; empty
            without any.
        score_function: What turns logits into the scores of labels.
        max_active_dims: The number of heaviest terms that a sparse vector keeps unless a request
            says otherwise; 0 for all.
        logit_score: The tokens whose logits are a causal model's score; None for other models.
        pair_template: The configured template of a causal reranker; None for that of the files.
        truncate_dim: The number of values that a vector keeps unless a request wants fewer; 0 for
            all. They are not scaled to length 1 again.
        keys: For each file, what is done with its keys.
        accepts_unknown_keys: Whether the configuration accepts unknown keys.
        accepted_keys: The values of unknown keys that were accepted.
        adapter: The LoRA adapter that is merged into the weights, if any.
        origins: "FILE: KEY" by property, the file relative to the model's folder; or
            "configuration: KEY". Properties that are not listed have their default value.
    """

    kind: Kind
    model_type: str
    poolings: tuple[Pooling, ...]
    normalize: bool
    token_dimensions: int
    dimensions: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str
    similarity: Similarity
    activation: Activation
    padding_side: PaddingSide
    pad_token_id: int
    config: Mapping[str, Any]
    folder: Path
    transformer_folder: Path
    representations: tuple[Representation, ...]
    sparse_dimensions: int = 0
    multi_vector_dimensions: int = 0
    dense_layers: tuple[VectorLayer, ...] = ()
    lowercase: bool = False
    truncation: Truncation = Truncation.END
    file: str = ""
    output: str = ""
    task_id: int | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    weight_type: WeightType = WeightType.FLOAT32
    pooling_is_set: bool = False
    include_prompt: bool = True
    splade: SpladePooling | None = None
    table: TokenTable | None = None
    weight_table: WeightTable | None = None
    sparse_head: TokenHead | None = None
    multi_vector_head: TokenHead | None = None
    unweighted_token_ids: frozenset[int] = frozenset()
    multi_vector_skip_tokens: int = 0
    late_interaction: LateInteraction | None = None
    max_active_dims: int = 0
    labels: tuple[str, ...] = ()
    score_function: Activation = Activation.IDENTITY
    logit_score: LogitScore | None = None
    pair_template: PairTemplate | None = None
    truncate_dim: int = 0
    keys: Sequence[str] = ()
    accepts_unknown_keys: bool = False
    accepted_keys: Mapping[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def vector_dimensions(self) -> int:
        """Values per vector that a request gets by default; 0 for a cross-encoder."""
        return self.truncate_dim or self.dimensions

    @property
    def normalized(self) -> bool:
        """Whether the vectors that a request gets by default have length 1."""
        return self.normalize and not self.truncate_dim

    @property
    def default_task(self) -> int:
        """The task of texts that belong to no request: that of the default prompt, or the first."""
        return self.tasks.get(self.default_prompt_name, 0)


def read(
    files: ModelFiles,
    overrides: ModelOverrides | None = None,
    *,
    served: ServedTokenOutputs | None = None,
    route: Route | None = None,
) -> ModelProperties:
    """Read the properties of a model, or of one of its routes: see `read_routes`.

    Args:
        files: The model's folder.
        overrides: The configuration, which wins over the files.
        served: The token outputs of the server that runs the model, which win over the heads and
            graphs in the folder; None for a model that runs here.
        route: The route of a model with routes.

    Raises:
        ModelError: A file is missing or wrong, or something is not supported.
    """
    overrides = overrides or ModelOverrides()
    modules = read_modules(files, route)
    table, weight_table = modules.table, modules.weight_table
    looked_up = table or weight_table
    has_encoder = looked_up is None
    folder = files.folder / modules.transformer
    weights = looked_up.file if looked_up else _find_weights(files, folder, overrides)
    is_exported = served is not None or weights.endswith(".onnx")
    adapter = _find_adapter(
        files, folder, overrides, is_built=has_encoder and bool(weights) and not is_exported
    )
    if has_encoder and not (folder / "config.json").exists():
        raise ModelError(f"{folder / 'config.json'} is missing: the folder contains no model")
    root = files.folder
    config = _read_config(folder, root, modules)
    extras = JsonObject.read_if_present(root / "config_sentence_transformers.json", root)
    tokenizer_config, settings = _read_settings(folder, root, modules)
    check_table_overrides(folder, modules, overrides)
    modules = override_modules(modules, config, root, overrides)
    is_late = is_late_interaction(read_architectures(config), extras, modules)
    verdicts = list(
        judge_folder(
            root,
            folder,
            settings.config,
            is_built=bool(weights) and not is_exported,
            is_late=is_late,
            table=table,
            looks_up_weights=weight_table is not None,
            route=route,
        )
    )
    verdicts += judge(adapter.config, ADAPTER) if adapter else ()
    accepted = check_keys(verdicts, root, accept_unknown=overrides.accept_unknown_keys)
    tokenizer_config = merge_arguments(tokenizer_config, settings.config)
    model_type = _read_model_type(config, has_encoder=has_encoder)
    kind = find_kind(config, extras, modules, is_late=is_late)
    modules, late_settings = (
        complete_late(modules, config, extras, settings.config) if is_late else (modules, None)
    )
    check_kind(kind, str(files.folder), overrides)
    labels, score_function = _find_labels(kind, config, extras, overrides)
    _check_task(settings.config, scores_by_logits=modules.logit_score is not None)
    prompts = {**add_prefixes(late_settings, read_prompts(extras)), **overrides.prompts}
    found = find_representations(files, config, modules, overrides, served, is_late=is_late)
    limit, truncation, truncated_by = _find_limits(
        folder,
        root,
        settings=settings,
        config=config,
        tokenizer_config=tokenizer_config,
        table=table,
        overrides=overrides,
    )
    late = find_late_interaction(
        late_settings, config, extras, tokenizer_config, limit, padding_side=overrides.padding_side
    )
    similarity = Similarity.DOT if modules.splade or weight_table else Similarity.COSINE
    pad_token_id = overrides.pad_token_id
    if pad_token_id is None:
        # For a table any, as its vector is multiplied with 0.
        pad_token_id = 0 if table else find_pad_token_id(folder, root, config, tokenizer_config)
    provenance = Provenance(files.folder)
    provenance.note_first("kind", [(config, "architectures")])
    provenance.note_modules(modules, found)
    provenance.note_logit_score(modules)
    activations = activation_places(config, extras)
    for name, places in {
        "model_type": [(config, "model_type")],
        "max_tokens": [(limit.config, limit.key)],
        "lowercase": [(settings.config, "do_lower_case")],
        "include_prompt": [(modules.pooling, "include_prompt")] if modules.pooling else [],
        "prompts": [(extras, "prompts")],
        "default_prompt_name": [(extras, "default_prompt_name")],
        "max_active_dims": [(extras, "max_active_dims")],
        "truncate_dim": [(extras, "truncate_dim")],
        "tasks": [(config, TASKS_KEY)],
        "similarity": [(extras, "similarity_fn_name")],
        "activation": activations,
        "labels": [(config, "id2label"), (config, "num_labels")],
        "score_function": [*activations, (config, "problem_type")],
        "truncation": [truncated_by],
        "pad_token_id": [(config, "pad_token_id"), (tokenizer_config, "pad_token")],
    }.items():
        provenance.note_first(name, places)
    provenance.note_late_interaction(late_settings)
    provenance.note_overrides(overrides)
    return ModelProperties(
        kind=kind,
        model_type=model_type,
        poolings=modules.poolings,
        normalize=modules.normalize,
        token_dimensions=modules.token_dimensions,
        dimensions=0 if late else modules.dimensions,
        max_tokens=max(late.max_tokens.values()) if late else limit.tokens,
        prompts=prompts,
        default_prompt_name=find_default_prompt_name(extras, prompts, overrides),
        similarity=overrides.similarity
        or (Similarity.DOT if late else read_similarity(extras, default=similarity)),
        activation=score_function
        if kind is Kind.CLASSIFIER
        else overrides.activation
        or read_activation(config, extras, default=published_activation(overrides.pair_template)),
        padding_side=overrides.padding_side or find_padding_side(tokenizer_config),
        pad_token_id=pad_token_id,
        config=config.values,
        folder=root,
        transformer_folder=folder,
        dense_layers=modules.layers,
        lowercase=settings.lowercase if overrides.lowercase is None else overrides.lowercase,
        truncation=truncation,
        file=overrides.file if has_encoder else weights,
        output=overrides.output,
        task_id=overrides.task_id,
        tasks={} if overrides.task_id is not None else read_tasks(config),
        pooling_is_set=bool(overrides.pooling),
        weight_type=overrides.weight_type,
        representations=found.names,
        sparse_dimensions=found.sparse_dimensions,
        multi_vector_dimensions=found.multi_vector_dimensions,
        include_prompt=modules.include_prompt,
        splade=modules.splade,
        table=table,
        weight_table=weight_table,
        sparse_head=found.sparse_head,
        multi_vector_head=found.multi_vector_head,
        unweighted_token_ids=found.unweighted_token_ids,
        multi_vector_skip_tokens=found.multi_vector_skip_tokens,
        late_interaction=late,
        max_active_dims=extras.count("max_active_dims") or 0,
        labels=labels,
        score_function=score_function,
        logit_score=modules.logit_score,
        pair_template=overrides.pair_template,
        truncate_dim=_read_kept(extras, modules.dimensions),
        keys=summarize(verdicts, root),
        accepts_unknown_keys=overrides.accept_unknown_keys,
        accepted_keys=accepted,
        adapter=adapter,
        origins=provenance.origins,
    )


def _read_config(folder: Path, root: Path, modules: Modules) -> JsonObject:
    """Return `config.json`; empty for a table of sentence-transformers, which has no encoder's."""
    path = folder / "config.json"
    table = modules.table
    if modules.weight_table is None and (table is None or table.of_model2vec):
        return JsonObject.read(path, root)
    return JsonObject(path, {})


def _read_model_type(config: JsonObject, *, has_encoder: bool) -> str:
    model_type = config.text("model_type", default="" if has_encoder else "static")
    if not model_type:
        raise config.wrong("model_type", "the name of an architecture")
    return model_type


def _read_settings(
    folder: Path, root: Path, modules: Modules
) -> tuple[JsonObject, TransformerSettings]:
    """Return `tokenizer_config.json` and the Transformer's settings; empty where they are not read.

    The reference libraries read neither file of a static model, and no settings of a Transformer
    for a table of weights.
    """
    path = folder / "tokenizer_config.json"
    empty = JsonObject(path, {})
    none = TransformerSettings(max_tokens=None, lowercase=False, config=empty)
    if modules.table is not None:
        return empty, none
    if modules.weight_table is not None:
        return JsonObject.read_if_present(path, root), none
    return JsonObject.read_if_present(path, root), read_transformer_settings(folder, root)


def _find_limits(
    folder: Path,
    root: Path,
    *,
    settings: TransformerSettings,
    config: JsonObject,
    tokenizer_config: JsonObject,
    table: TokenTable | None,
    overrides: ModelOverrides,
) -> tuple[TokenLimit, Truncation, tuple[JsonObject, str]]:
    """Return the longest sequence, the end that is cut, and the file and key that say which."""
    if table is not None:
        limit = find_table_limit(table, config, overrides)
        truncation, file, key = find_table_truncation(folder, root, table, overrides)
    else:
        limit = find_max_tokens(settings, config, tokenizer_config, wanted=overrides.max_tokens)
        truncation, file, key = find_truncation(folder, root, tokenizer_config)
    return limit, truncation, (file, key)


def _find_adapter(
    files: ModelFiles, folder: Path, overrides: ModelOverrides, *, is_built: bool
) -> Adapter | None:
    """Return the adapter to merge, if any.

    Raises:
        ModelError: It has no weights to be merged into, or cannot be used.
    """
    beside = folder / ADAPTER_NAME
    is_beside = files.has(str(beside.relative_to(files.folder)))
    if is_built and (folder / CONFIG_NAME).exists():
        fetch_adapter(files, folder)
        return find_adapter(files.adapter or overrides.adapter, folder, files.folder)
    if overrides.adapter or files.adapter:
        raise ModelError(
            f"{files.folder}: adapter is set, but there are no weights to merge it into: use a"
            " model with safetensors, and set file to model.safetensors beside an ONNX export"
        )
    if is_beside and not _find_weights(files, folder, overrides):
        config = JsonObject.read(beside, files.folder)
        base = config.text("base_model_name_or_path", default="") or "its base model"
        raise ModelError(
            f"{beside}: the folder contains an adapter without {base}: serve that model and set"
            f" adapter (--model-adapter) to {folder}, or put config.json and the weights of that"
            " model into this folder"
        )
    return None


def _find_weights(files: ModelFiles, folder: Path, overrides: ModelOverrides) -> str:
    """Return the name of the file of weights; empty if there is none."""
    place = folder.relative_to(files.folder)
    return overrides.file or choose_weights(lambda name: files.has(str(place / name))) or ""


def _find_labels(
    kind: Kind, config: JsonObject, extras: JsonObject, overrides: ModelOverrides
) -> tuple[tuple[str, ...], Activation]:
    """Return the labels of a model, and what turns its logits into their scores."""
    if kind is Kind.EMBEDDING or not has_labels(config):
        return (), Activation.IDENTITY
    labels = read_labels(config)
    function = overrides.activation or read_score_function(config, extras, label_count=len(labels))
    return labels, function


def _check_task(settings: JsonObject, *, scores_by_logits: bool) -> None:
    """Check that the Transformer is a causal model if a LogitScore follows, and only then."""
    task = settings.text("transformer_task", default="")
    if scores_by_logits and settings.values and task != _CAUSAL_TASK:
        raise settings.wrong("transformer_task", f"{_CAUSAL_TASK}, as the model has a LogitScore")
    if task == _CAUSAL_TASK and not scores_by_logits:
        raise ModelError(
            f"{settings.path}: transformer_task is {task}, which needs a LogitScore in modules.json"
        )


def _read_kept(extras: JsonObject, dimensions: int) -> int:
    """Return how many values of its vectors a model keeps; 0 for all."""
    if extras.values.get("truncate_dim") is None:
        return 0
    kept = extras.size("truncate_dim")
    return kept if kept < dimensions else 0
