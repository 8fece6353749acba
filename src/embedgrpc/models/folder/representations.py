"""Finds which forms of vectors a model makes, and what makes them."""

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

# Tokens whose weights are no part of a sparse vector, by their meanings.
# Source: FlagEmbedding, inference of BGE-M3.
_UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")
# The same source leaves out the vector of the first token, from which the dense one is made.
_SKIPPED_TOKENS = 1


@dataclass(frozen=True, slots=True)
class Representations:
    """The forms of vectors that a model makes.

    Attributes:
        names: The forms, the default first.
        sparse_dimensions: Entries of the vocabulary; 0 without sparse vectors.
        multi_vector_dimensions: Values per vector of a token; 0 without multi-vectors.
        sparse_head: What makes the weights of tokens; None without.
        multi_vector_head: What makes the vectors of tokens; None without.
        exported: The ONNX graph that makes both by itself; None without.
        unweighted_token_ids: Tokens whose weights are left out of a sparse vector.
        multi_vector_skip_tokens: Tokens at the start whose vectors are left out.
    """

    names: tuple[Representation, ...]
    sparse_dimensions: int
    multi_vector_dimensions: int
    sparse_head: TokenHead | None
    multi_vector_head: TokenHead | None
    exported: Path | None
    unweighted_token_ids: frozenset[int]
    multi_vector_skip_tokens: int


@dataclass(frozen=True, slots=True)
class ServedTokenOutputs:
    """What a server that runs a model makes of its tokens.

    Attributes:
        token_weights: Whether it weighs them.
        token_vectors: Whether it gives them vectors for late interaction.
        vector_dimensions: Values per such vector; 0 where the server does not tell, and the
            model's files are asked.
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
) -> Representations:
    """Finds the forms of vectors that a model makes.

    Args:
        files: The model's folder; the heads of tokens lie in it.
        config: `config.json` of the backbone; the tokenizer lies beside it.
        modules: The modules after the backbone.
        overrides: What the configuration says about the model.
        served: What a server makes of its tokens; None for a model that runs here.

    Returns:
        The forms; none for a cross-encoder.

    Raises:
        ModelError: A file is missing or wrong, or a head does not fit the backbone.
    """
    sparse, multi_vector = _find_heads(files.folder, modules)
    has_weights, dimensions = bool(sparse), multi_vector.out_features if multi_vector else 0
    exported = None
    # Who asks for one output of a graph does without the others.
    if served is not None:
        has_weights, dimensions = served.token_weights, 0
        if served.token_vectors:
            dimensions = served.vector_dimensions or _count_dimensions(multi_vector, modules)
        sparse = multi_vector = None
    elif modules.poolings and not sparse and not multi_vector and not overrides.output:
        exported = _find_export(files, config.path.parent, overrides.file)
        has_weights, dimensions = _read_exported(exported, files.folder, modules)
    there = {
        Representation.DENSE: bool(modules.poolings),
        Representation.SPARSE: bool(modules.splade) or has_weights,
        Representation.MULTI_VECTOR: bool(dimensions),
    }
    return Representations(
        names=tuple(representation for representation, present in there.items() if present),
        sparse_dimensions=(
            _find_vocabulary(config, modules) if there[Representation.SPARSE] else 0
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


def _count_dimensions(head: TokenHead | None, modules: Modules) -> int:
    return head.out_features if head else modules.token_dimensions


def _find_heads(folder: Path, modules: Modules) -> tuple[TokenHead | None, TokenHead | None]:
    # They make more of the token vectors that are pooled into a dense vector.
    if not modules.poolings:
        return None, None
    size = modules.token_dimensions
    return (
        find_head(folder, SPARSE_NAME, hidden_size=size),
        find_head(folder, MULTI_VECTOR_NAME, hidden_size=size),
    )


def _find_export(files: ModelFiles, folder: Path, file: str) -> Path | None:
    """The ONNX graph that the model is made from, brought where it lies in a repository."""
    place = PurePosixPath(folder.relative_to(files.folder))
    name = file or choose_weights(lambda name: files.has(str(place / name))) or ""
    if not name.endswith(".onnx") or not files.has(str(place / name)):
        return None
    files.fetch([str(place / name)])
    return folder / name


def _read_exported(path: Path | None, root: Path, modules: Modules) -> tuple[bool, int]:
    """Whether a graph weighs its tokens, and the length of its tokens' vectors.

    Where the graph does not tell the length, it is taken to be that of the token vectors, and
    tested when the graph is built.
    """
    outputs = read_outputs(path, root) if path is not None else {}
    if not outputs.keys() & set(DENSE_NAMES):
        return False, 0
    vectors = next((outputs[name] for name in VECTOR_NAMES if name in outputs), None)
    dimensions = 0 if vectors is None else (vectors or (None,))[-1] or modules.token_dimensions
    return bool(outputs.keys() & set(WEIGHT_NAMES)), dimensions


def _find_vocabulary(config: JsonObject, modules: Modules) -> int:
    vocabulary = config.size("vocab_size")
    splade = modules.splade
    if splade and splade.dimensions not in {0, vocabulary}:
        raise ModelError(
            f"{config.path}: vocab_size {vocabulary} is not the {splade.dimensions} "
            "that the SpladePooling module's config.json says"
        )
    return vocabulary
