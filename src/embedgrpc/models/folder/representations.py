"""Reads which representations a model has, and what makes them."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.onnx_outputs import read_outputs
from embedgrpc.models.folder.m3_names import DENSE_NAMES, VECTOR_NAMES, WEIGHT_NAMES
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.special_tokens import find_special_ids
from embedgrpc.models.kinds import Representation
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import choose_weights
from embedgrpc.models.tensors.token_heads import (
    MULTI_VECTOR_NAME,
    SPARSE_NAME,
    TokenHead,
    find_head,
)

# The roles of tokens that sparse vectors leave out. Source: FlagEmbedding, inference of BGE-M3.
_UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")
# Multi-vectors leave out the first token, which makes the dense vector. Source: as above.
_SKIPPED_TOKENS = 1


@dataclass(frozen=True, slots=True)
class Representations:
    """The representations of a model; see `ModelProperties` for the attributes not listed.

    Attributes:
        names: The default first.
        exported: The ONNX graph that makes sparse vectors or multi-vectors by itself, if any.
    """

    names: tuple[Representation, ...]
    sparse_dimensions: int = 0
    multi_vector_dimensions: int = 0
    sparse_head: TokenHead | None = None
    multi_vector_head: TokenHead | None = None
    exported: Path | None = None
    unweighted_token_ids: frozenset[int] = frozenset()
    multi_vector_skip_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ServedTokenOutputs:
    """The outputs per token of a server that runs a model.

    Attributes:
        token_weights: Whether it returns the weights of sparse vectors.
        token_vectors: Whether it returns the vectors of multi-vectors.
        vector_dimensions: Values per token vector; 0 if the server does not say, so that the
            model's files count.
    """

    token_weights: bool
    token_vectors: bool
    vector_dimensions: int


def find_representations(
    files: ModelFiles,
    config: JsonObject,
    modules: Modules,
    overrides: ModelOverrides,
    served: ServedTokenOutputs | None,
    *,
    is_late: bool = False,
) -> Representations:
    """Return the representations of a model; none for a cross-encoder.

    Args:
        files: The model's folder, with the heads.
        config: The backbone's `config.json`, beside its tokenizer.
        modules: The modules after the backbone.
        overrides: The configuration.
        served: The token outputs of the server that runs the model; None if it runs here.
        is_late: Whether it is a model of late interaction.

    Raises:
        ModelError: A file is missing or wrong, or a head does not fit the backbone.
    """
    if is_late:
        return _of_late_interaction(config, modules, served)
    if modules.weight_table is not None:
        if served is not None:
            raise ModelError(
                f"{files.folder}: the model is a table of weights, which is not run on Triton: "
                "give its folder as the source"
            )
        return Representations(
            (Representation.SPARSE,), sparse_dimensions=modules.weight_table.entries
        )
    sparse, multi_vector = _find_heads(files.folder, modules)
    has_weights, dimensions = bool(sparse), multi_vector.out_features if multi_vector else 0
    exported = None
    if served is not None:
        has_weights, dimensions = served.token_weights, 0
        if served.token_vectors:
            own = multi_vector.out_features if multi_vector else modules.token_dimensions
            dimensions = served.vector_dimensions or own
        sparse = multi_vector = None
    # With `output` set, the other outputs of a graph are not used.
    elif (
        modules.poolings
        and not modules.table
        and not sparse
        and not multi_vector
        and not overrides.output
    ):
        exported = _find_export(files, config.path.parent, overrides.file)
        has_weights, dimensions = _read_exported(exported, files.folder, modules)
    present = {
        Representation.DENSE: bool(modules.poolings),
        Representation.SPARSE: bool(modules.splade) or has_weights,
        Representation.MULTI_VECTOR: bool(dimensions),
    }
    return Representations(
        names=tuple(name for name, is_present in present.items() if is_present),
        sparse_dimensions=(
            _count_vocabulary(config, modules) if present[Representation.SPARSE] else 0
        ),
        multi_vector_dimensions=dimensions,
        sparse_head=sparse,
        multi_vector_head=multi_vector,
        exported=exported if has_weights or dimensions else None,
        unweighted_token_ids=frozenset(
            find_special_ids(config.path.parent, files.folder, _UNWEIGHTED).values()
            if has_weights
            else ()
        ),
        multi_vector_skip_tokens=_SKIPPED_TOKENS if dimensions else 0,
    )


def _of_late_interaction(
    config: JsonObject, modules: Modules, served: ServedTokenOutputs | None
) -> Representations:
    if served is not None and not served.token_vectors:
        raise ModelError(
            f"{config.path.parent}: the model makes a vector of each token, but the server that "
            f"runs it has no output token_embeddings"
        )
    return Representations(
        names=(Representation.MULTI_VECTOR,),
        multi_vector_dimensions=modules.layers[-1].out_features
        if modules.layers
        else modules.token_dimensions,
    )


def _find_heads(folder: Path, modules: Modules) -> tuple[TokenHead | None, TokenHead | None]:
    # The heads need the token vectors that pooling uses.
    if not modules.poolings:
        return None, None
    size = modules.token_dimensions
    return (
        find_head(folder, SPARSE_NAME, hidden_size=size),
        find_head(folder, MULTI_VECTOR_NAME, hidden_size=size),
    )


def _find_export(files: ModelFiles, folder: Path, file: str) -> Path | None:
    """Return the ONNX graph of the model, downloaded if necessary; None if it has none."""
    place = PurePosixPath(folder.relative_to(files.folder))
    name = file or choose_weights(lambda name: files.has(str(place / name))) or ""
    if not name.endswith(".onnx") or not files.has(str(place / name)):
        return None
    files.fetch([str(place / name)])
    return folder / name


def _read_exported(path: Path | None, root: Path, modules: Modules) -> tuple[bool, int]:
    """Return whether a graph makes token weights, and the size of its multi-vectors or 0.

    If the graph does not say the size, it is assumed to be that of the backbone's token vectors;
    building the graph checks this.
    """
    outputs = read_outputs(path, root) if path is not None else {}
    if not outputs.keys() & set(DENSE_NAMES):
        return False, 0
    vectors = next((outputs[name] for name in VECTOR_NAMES if name in outputs), None)
    dimensions = 0 if vectors is None else (vectors or (None,))[-1] or modules.token_dimensions
    return bool(outputs.keys() & set(WEIGHT_NAMES)), dimensions


def _count_vocabulary(config: JsonObject, modules: Modules) -> int:
    vocabulary = config.size("vocab_size")
    splade = modules.splade
    if splade and splade.dimensions not in {0, vocabulary}:
        raise ModelError(
            f"{config.path}: vocab_size is {vocabulary}, but the SpladePooling module's "
            f"config.json says {splade.dimensions}"
        )
    return vocabulary
