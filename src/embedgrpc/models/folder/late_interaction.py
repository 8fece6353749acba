"""Reads how a model of late interaction computes queries and documents.

Three layouts exist: MultiVectorEncoder of sentence-transformers, PyLate, and the checkpoints of
ColBERT's authors. All three are read as sentence-transformers 6.2 reads them.

Sources: Khattab and Zaharia, "ColBERT", 2020; Santhanam et al., "ColBERTv2", 2022;
sentence-transformers `MultiVectorEncoder`.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.limits import TokenLimit, table_positions
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.folder.multi_vector_mask import MultiVectorMask, read_words
from embedgrpc.models.folder.overrides import HIDDEN_SIZE_KEYS
from embedgrpc.models.kinds import PaddingSide, TextRole
from embedgrpc.models.tensors.vector_layers import DenseLayer

# The architecture of checkpoints by ColBERT's authors, and the file of their settings.
AUTHORS_ARCHITECTURE = "HF_ColBERT"
METADATA_NAME = "artifact.metadata"
MODEL_TYPES = frozenset({"MultiVectorEncoder", "ColBERT"})
_PYLATE_TYPE = "ColBERT"
# The keys by which PyLate's files are known; older releases write no model_type.
_PYLATE_KEYS = frozenset(
    {"query_prefix", "document_prefix", "query_length", "document_length", "query_expansion",
     "do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens",
     "skiplist_words"}
)  # fmt: skip
_TRANSFORMER_KEYS = ("query_length", "document_length", "query_expansion")
_EXPANSION_KEYS = frozenset({"strategy", "attend", "token", "length"})
# ColBERT's length of a query, and of a vector.
_LENGTH = 32
_DIMENSIONS = 128
# A query's length is a bound on memory: no model has longer ones.
_LENGTH_MAX = 8192


@dataclass(frozen=True, slots=True)
class QueryExpansion:
    """Tokens at the end of a query that fill it up to a length.

    Attributes:
        length: Tokens of an expanded query, special tokens included.
        attended: Whether the other tokens see them.
        token: The token's text; empty for the mask token, or the end of a sequence where a
            tokenizer has none.
    """

    length: int
    attended: bool
    token: str = ""


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """How a model computes and compares one vector per token.

    Attributes:
        max_tokens: The longest text of each role, special tokens and marker included.
        expansion: How queries are filled up; None if they are not.
        compares_expansion: Whether the vectors of unattended tokens are compared.
        markers: Texts in front of a role's texts that must become one token.
        mask: The tokens that are left out.
        unit: Whether each vector is scaled to length 1.
        mean: Whether a score is divided by the number of the query's vectors.
    """

    max_tokens: Mapping[TextRole, int]
    expansion: QueryExpansion | None
    compares_expansion: bool
    markers: tuple[str, ...]
    mask: MultiVectorMask
    unit: bool
    mean: bool

    def min_tokens(self, role: TextRole) -> int:
        """Return the tokens that each text of a role has at least."""
        return self.expansion.length if self.expansion and role is TextRole.QUERY else 0


@dataclass(frozen=True, slots=True)
class LateSettings:
    """What the files of a model say, before the limits of its backbone are known.

    Attributes:
        values: query_length, document_length and query_expansion, as the backbone's module names
            them.
        source: The file that has them.
        prefix_source: The file that has the prefixes.
        prefixes: The text in front of each role's texts, by the name of its prompt.
        mask: The tokens that are left out; None without a module for that.
        unit: Whether each vector is scaled to length 1.
    """

    values: Mapping[str, Any]
    source: JsonObject
    prefix_source: JsonObject
    mask: MultiVectorMask | None
    unit: bool
    prefixes: Mapping[str, str] = field(default_factory=dict)


def add_prefixes(settings: LateSettings | None, prompts: Mapping[str, str]) -> Mapping[str, str]:
    """Return the prompts of a model with those of both roles, which begin with the prefixes.

    Args:
        settings: Those of a model of late interaction; None for other models.
        prompts: The prompts of its files, by name.
    """
    if settings is None:
        return prompts
    found = {role.value: "" for role in TextRole} | dict(prompts)
    for role, prefix in settings.prefixes.items():
        found[role] = prefix + found[role].removeprefix(prefix)
    return found


def is_late_interaction(architectures: Sequence[str], extras: JsonObject, modules: Modules) -> bool:
    """Return whether a model has one vector per token and no other.

    Args:
        architectures: Those of `config.json`.
        extras: `config_sentence_transformers.json`.
        modules: The content of `modules.json`.
    """
    if modules.poolings or modules.splade:
        return False
    if extras.text("model_type", default="") in MODEL_TYPES or modules.mask is not None:
        return True
    if not _has_modules(extras.path.parent):
        return AUTHORS_ARCHITECTURE in architectures
    return bool(modules.layers) and bool(_PYLATE_KEYS & extras.values.keys())


def _has_modules(root: Path) -> bool:
    return (root / "modules.json").exists()


def complete_late(
    modules: Modules, config: JsonObject, extras: JsonObject, transformer: JsonObject
) -> tuple[Modules, LateSettings]:
    """Return the modules with all that a model of late interaction implies, and its settings.

    Args:
        modules: The content of `modules.json`.
        config: The backbone's `config.json`.
        extras: `config_sentence_transformers.json`.
        transformer: The Transformer's file, which wins.

    Raises:
        ModelError: A file is wrong, or says something that is not supported.
    """
    if modules.layers:
        size = modules.layers[0].in_features
    else:
        key = next((key for key in HIDDEN_SIZE_KEYS if key in config.values), HIDDEN_SIZE_KEYS[0])
        size = config.size(key)
    modules = replace(modules, token_dimensions=size)
    own = {key: transformer.values[key] for key in _TRANSFORMER_KEYS if key in transformer.values}
    root = extras.path.parent
    if not _has_modules(root):
        metadata = JsonObject.read_if_present(root / METADATA_NAME, root)
        settings = _read_metadata(metadata)
        modules = replace(modules, layers=(_read_projection(metadata, size),))
    else:
        settings = _read_pylate(extras, modules)
    if own:
        settings = replace(settings, values={**settings.values, **own}, source=transformer)
    return modules, settings


def _read_projection(metadata: JsonObject, hidden_size: int) -> DenseLayer:
    # It lies in the backbone's file of weights. Its size is checked when it is read.
    size = metadata.size("dim") if metadata.count("dim") is not None else _DIMENSIONS
    return DenseLayer(metadata.path.parent, hidden_size, size, bias=False, activation="Identity")


def _read_pylate(extras: JsonObject, modules: Modules) -> LateSettings:
    """Read the settings of a folder with modules, which PyLate keeps in another file."""
    mask = modules.mask
    # PyLate lists neither the mask nor the scaling as modules.
    implied = mask is None and extras.text("model_type", default="") in {"", _PYLATE_TYPE}
    if implied:
        words = read_words(extras, "skiplist_words")
        mask = MultiVectorMask(tuple(string.punctuation) if words is None else words)
    return LateSettings(
        values=_read_pylate_values(extras),
        source=extras,
        prefix_source=extras,
        mask=mask,
        unit=modules.unit_tokens or implied,
        prefixes={
            role.value: extras.text(f"{role}_prefix", default="")
            for role in TextRole
            if f"{role}_prefix" in extras.values
        },
    )


def _read_pylate_values(extras: JsonObject) -> dict[str, Any]:
    values = {
        key: extras.values[key] for key in _TRANSFORMER_KEYS if extras.values.get(key) is not None
    }
    if not _PYLATE_KEYS & extras.values.keys():
        return values
    if "query_expansion" in extras.values:
        return values | {"query_expansion": extras.values["query_expansion"]}
    if not extras.flag("do_query_expansion", default=True):
        return values | {"query_expansion": None}
    old = extras.flag("attend_to_mask_tokens", default=False)
    return {key: value for key, value in values.items() if key != "query_length"} | {
        "query_expansion": {
            "strategy": "fixed",
            "attend": extras.flag("attend_to_expansion_tokens", default=old),
            "length": values.get("query_length", _LENGTH),
        }
    }


def _read_metadata(metadata: JsonObject) -> LateSettings:
    """Read the settings of a checkpoint by ColBERT's authors, which has no modules."""
    if metadata.text("interaction", default="colbert") != "colbert":
        raise metadata.wrong("interaction", "colbert")
    if metadata.text("similarity", default="cosine") != "cosine":
        raise metadata.wrong("similarity", "cosine")
    values: dict[str, Any] = {
        "query_expansion": {
            "strategy": "fixed",
            "attend": metadata.flag("attend_to_mask_tokens", default=False),
            "length": metadata.count("query_maxlen") or _LENGTH,
        }
    }
    if metadata.count("doc_maxlen") is not None:
        values["document_length"] = metadata.size("doc_maxlen")
    punctuation = metadata.flag("mask_punctuation", default=True)
    query = metadata.text("query_token_id", default="") or "[unused0]"
    document = metadata.text("doc_token_id", default="") or "[unused1]"
    return LateSettings(
        values=values,
        source=metadata,
        prefix_source=metadata,
        mask=MultiVectorMask(tuple(string.punctuation) if punctuation else ()),
        unit=True,
        prefixes={TextRole.QUERY.value: f"{query} ", TextRole.DOCUMENT.value: f"{document} "},
    )


def find_late_interaction(
    settings: LateSettings | None,
    config: JsonObject,
    extras: JsonObject,
    tokenizer_config: JsonObject,
    limit: TokenLimit,
    *,
    padding_side: PaddingSide | None,
) -> LateInteraction | None:
    """Combine the settings with the limits of the backbone.

    Args:
        settings: The settings; None for a model of another kind.
        config: The backbone's `config.json`.
        extras: `config_sentence_transformers.json`.
        tokenizer_config: `tokenizer_config.json`.
        limit: The limit of texts without a limit of their own; it is the most where the
            configuration sets it.
        padding_side: The side that the configuration sets, if any.

    Raises:
        ModelError: A value is wrong, or does not fit the backbone.
    """
    if settings is None:
        return None
    values = JsonObject(settings.source.path, settings.values)
    expansion, cuts = _read_expansion(values)
    lengths = {
        role: values.size(f"{role}_length") if values.count(f"{role}_length") else limit.tokens
        for role in TextRole
    }
    if expansion is not None:
        if "left" in {padding_side, tokenizer_config.text("padding_side", default="")}:
            # The reference would fill up queries from the left.
            raise tokenizer_config.wrong("padding_side", "right, as tokens are appended to queries")
        asked = values.count("query_length")
        if asked and asked < expansion.length:
            raise values.wrong(
                "query_length", f"at least query_expansion's length, {expansion.length}"
            )
        if cuts:
            lengths[TextRole.QUERY] = expansion.length
    # The configuration's limit has no key in a file.
    most = table_positions(config) if limit.key else limit.tokens
    if most is not None:
        if expansion is not None and expansion.length > most:
            raise values.wrong(
                "query_expansion.length", f"at most {most}, the longest sequence of the model"
            )
        lengths = {role: min(length, most) for role, length in lengths.items()}
    return LateInteraction(
        max_tokens=lengths,
        expansion=expansion,
        compares_expansion=settings.mask is not None,
        # Only these need not be one token already.
        markers=tuple(prefix for prefix in settings.prefixes.values() if prefix.strip()),
        mask=settings.mask or MultiVectorMask(()),
        unit=settings.unit,
        # Other names, such as PyLate's "MaxSim", stand for maxsim.
        mean=extras.text("similarity_fn_name", default="maxsim") == "meanmaxsim",
    )


def _read_expansion(values: JsonObject) -> tuple[QueryExpansion | None, bool]:
    """Return how queries are expanded, and whether longer ones are cut to the same length."""
    key = "query_expansion"
    if values.values.get(key) is None:
        return None, False
    expansion = JsonObject(values.path, values.table(key))
    unknown = sorted(expansion.values.keys() - _EXPANSION_KEYS)
    if unknown:
        raise ModelError(f"{values.path}: {key}.{unknown[0]} is not supported")
    strategy = expansion.text("strategy", default="")
    if strategy not in {"fixed", "min"}:
        raise expansion.wrong(f"{key}.strategy", "fixed or min")
    length = expansion.size("length")
    if length > _LENGTH_MAX:
        raise expansion.wrong(f"{key}.length", f"at most {_LENGTH_MAX}")
    attended = expansion.flag("attend", default=False)
    token = expansion.text("token", default="")
    return QueryExpansion(length, attended, token), strategy == "fixed"
