"""The properties of a model that `embedgrpc inspect` prints."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from embedgrpc.cli.validated import check_validated, prepare_validated
from embedgrpc.engine.tasks.similarity import method_for
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.late_interaction import LateInteraction
from embedgrpc.models.folder.routes import RoutedProperties, read_routes
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs.content_hash import hash_routes
from embedgrpc.models.graphs.identity import Identity, identify
from embedgrpc.models.graphs.stored_type import find_stored_type
from embedgrpc.models.kinds import Kind, RerankMethod, TextRole
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import Format
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings


class Property(NamedTuple):
    """A property of a model.

    Attributes:
        name: The name.
        value: The value, of a type that JSON has.
        origin: The file and key that define it; empty if none does.
    """

    name: str
    value: Any
    origin: str = ""


def describe(
    model: ModelSettings, settings: Settings, *, may_build: bool = True
) -> Iterator[Property]:
    """Yield the properties of a model.

    Args:
        model: The settings of the model.
        settings: The settings of the server.
        may_build: Whether its graph is built, unless it is cached, and an export tried. A model
            that passes is one that `serve` loads.

    Raises:
        ModelError: The model cannot be served.
    """
    files = resolve(model.source, model.adapter)
    if may_build:
        found, _ = prepare_validated(files, model, settings)
    else:
        check_validated(files, model, settings)
        found = read_routes(files, model.overrides)
    identities = {}
    for name, read in found.by_route.items():
        Tokenizer.load(read)
        identities[name] = identify(files, read, cache_dir=settings.cache_dir)
    method = _find_method(found)
    yield Property("source", model.source)
    yield Property("revision", files.revision)
    yield Property("folder", str(files.folder))
    if files.adapter_source:
        yield Property("adapter", files.adapter_source)
    if found.has_router:
        yield from _describe_routes(found)
    for name, read in found.by_route.items():
        for one in _describe_route(read, identities[name], files.folder, is_built=may_build):
            yield one._replace(name=f"{name}.{one.name}") if name else one
    yield Property("rerank_method", method)
    hashes = {name: identity.content_hash for name, identity in identities.items()}
    yield Property("fingerprint", hash_routes(hashes, found.by_role))


def _describe_routes(found: RoutedProperties) -> Iterator[Property]:
    """Yield the route that texts of each role pass."""
    chosen = {role or "no input_type": name for role, name in found.by_role.items()}
    yield Property("route", chosen)
    if found.skipped:
        yield Property("routes_skipped", list(found.skipped))


def _describe_route(
    read: properties.ModelProperties, identity: Identity, folder: Path, *, is_built: bool
) -> Iterator[Property]:
    """Yield the properties of a route, or of a model without routes."""

    def defined(name: str, value: Any) -> Property:
        return Property(name, value, read.origins.get(name, "default"))

    yield defined("kind", read.kind)
    yield defined("model_type", read.model_type)
    yield from _describe_weights(identity, folder)
    yield Property("tokenizer", _within(find_tokenizer_file(read.transformer_folder), folder))
    yield defined("max_tokens", read.max_tokens)
    yield defined("truncation", read.truncation)
    yield defined("padding_side", read.padding_side)
    yield defined("pad_token_id", read.pad_token_id)
    yield defined("lowercase", read.lowercase)
    yield from _describe_results(read, defined)
    yield Property("keys", list(read.keys))
    yield Property("graph", _describe_check(identity, is_built=is_built))


def _describe_late(late: LateInteraction | None) -> Iterator[tuple[str, Any]]:
    if late is None:
        return
    for role, length in late.max_tokens.items():
        yield f"{role}_length", length
    expansion = late.expansion
    yield "query_expansion", asdict(expansion) if expansion else None
    yield "skipped_words", list(late.mask.words)
    yield "skipped_in", list(late.mask.roles)
    yield "unit_token_vectors", late.unit
    yield "mean_score", late.mean


def _find_method(found: RoutedProperties) -> RerankMethod | None:
    read = found.first
    if found.has_router and not {TextRole.QUERY, TextRole.DOCUMENT} <= found.by_role.keys():
        return None
    if read.kind is Kind.EMBEDDING:
        return method_for(read.representations)
    return RerankMethod.CROSS_ENCODER if read.kind is Kind.CROSS_ENCODER else None


def _describe_results(
    read: properties.ModelProperties, defined: Callable[[str, Any], Property]
) -> Iterator[Property]:
    """Yield what becomes of texts: vectors or scores."""
    if read.kind is not Kind.EMBEDDING:
        yield from _describe_scores(read, defined)
        return
    yield defined("representations", list(read.representations))
    yield defined("poolings", list(read.poolings))
    yield defined("dense_layers", [_describe_layer(layer) for layer in read.dense_layers])
    yield defined("normalize", read.normalize)
    for name in ("dimensions", "truncate_dim", "sparse_dimensions", "multi_vector_dimensions"):
        if getattr(read, name):
            yield defined(name, getattr(read, name))
    if not read.include_prompt:
        yield defined("include_prompt", read.include_prompt)
    for name, value in _describe_late(read.late_interaction):
        yield defined(name, value)
    yield defined("prompts", dict(read.prompts))
    if read.tasks:
        yield defined("tasks", dict(read.tasks))
    yield defined("default_prompt_name", read.default_prompt_name)
    if read.max_active_dims:
        yield defined("max_active_dims", read.max_active_dims)
    yield defined("similarity", read.similarity)


def _describe_scores(
    read: properties.ModelProperties, defined: Callable[[str, Any], Property]
) -> Iterator[Property]:
    if read.kind is Kind.CROSS_ENCODER:
        yield defined("activation", read.activation)
    if read.logit_score:
        yield defined("logit_score_token_ids", list(read.logit_score.token_ids))
    if read.labels:
        yield defined("labels", list(read.labels))
        yield defined("score_function", read.score_function)
    if read.prompts:
        yield defined("prompts", dict(read.prompts))
        yield defined("default_prompt_name", read.default_prompt_name)


def _describe_weights(identity: Identity, folder: Path) -> Iterator[Property]:
    weights = [identity.weight_file.path, *identity.external]
    yield Property("weights", [_within(path, folder) for path in weights])
    yield Property("weights_format", identity.weight_file.format)
    yield Property("weights_type", find_stored_type(identity.weight_file))
    yield Property("weights_bytes", sum(path.stat().st_size for path in weights))


def _describe_check(identity: Identity, *, is_built: bool) -> str:
    if not is_built:
        return "not built: the weights and their results are not checked"
    if identity.weight_file.format is Format.ONNX:
        return "built; results alone, batched and padded agree"
    return "built"


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _describe_layer(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    name = type(layer).__name__.removesuffix("Layer")
    sizes = f"{name} {layer.in_features} -> {layer.out_features}"
    return f"{sizes}, {activation}" if activation else sizes
