"""The properties of a model that `embedgrpc inspect` prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from embedgrpc.cli.validated import check_validated
from embedgrpc.engine.tasks.similarity import method_for
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.graphs.stored_type import find_stored_type
from embedgrpc.models.kinds import Kind, RerankMethod
from embedgrpc.models.sources.source import resolve
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


def describe(model: ModelSettings, settings: Settings) -> Iterator[Property]:
    """Yield the properties of a model, without running it.

    Raises:
        ModelError: The model cannot be served.
    """
    files = resolve(model.source)
    check_validated(files, model, settings)
    read = properties.read(files, model.overrides)
    Tokenizer.load(read)
    identity = identify(files, read, cache_dir=settings.cache_dir)
    embeds = read.kind is Kind.EMBEDDING
    method = _find_method(read)
    origins = read.origins

    def defined(name: str, value: Any) -> Property:
        return Property(name, value, origins.get(name, "default"))

    yield Property("source", model.source)
    yield Property("revision", files.revision)
    yield Property("folder", str(files.folder))
    yield defined("kind", read.kind)
    yield defined("model_type", read.model_type)
    weights = [identity.weight_file.path, *identity.external]
    yield Property("weights", [_within(path, files.folder) for path in weights])
    yield Property("weights_format", identity.weight_file.format)
    yield Property("weights_type", find_stored_type(identity.weight_file))
    yield Property("weights_bytes", sum(path.stat().st_size for path in weights))
    yield Property("tokenizer", _within(find_tokenizer_file(read.transformer_folder), files.folder))
    yield defined("max_tokens", read.max_tokens)
    yield defined("truncation", read.truncation)
    yield defined("padding_side", read.padding_side)
    yield defined("pad_token_id", read.pad_token_id)
    yield defined("lowercase", read.lowercase)
    if embeds:
        yield defined("representations", list(read.representations))
        yield defined("poolings", list(read.poolings))
        yield defined("dense_layers", [_describe_layer(layer) for layer in read.dense_layers])
        yield defined("normalize", read.normalize)
        if read.dimensions:
            yield defined("dimensions", read.dimensions)
        for name in ("sparse_dimensions", "multi_vector_dimensions"):
            if getattr(read, name):
                yield defined(name, getattr(read, name))
        yield defined("prompts", dict(read.prompts))
        if read.tasks:
            yield defined("tasks", dict(read.tasks))
        yield defined("default_prompt_name", read.default_prompt_name)
        if read.max_active_dims:
            yield defined("max_active_dims", read.max_active_dims)
        yield defined("similarity", read.similarity)
    if read.kind is Kind.CROSS_ENCODER:
        yield defined("activation", read.activation)
    if read.labels:
        yield defined("labels", list(read.labels))
        yield defined("score_function", read.score_function)
    yield Property("rerank_method", method)
    yield Property("keys", list(read.keys))
    yield Property("fingerprint", identity.content_hash)


def _find_method(read: properties.ModelProperties) -> RerankMethod | None:
    if read.kind is Kind.EMBEDDING:
        return method_for(read.representations)
    return RerankMethod.CROSS_ENCODER if read.kind is Kind.CROSS_ENCODER else None


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _describe_layer(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    name = type(layer).__name__.removesuffix("Layer")
    sizes = f"{name} {layer.in_features} -> {layer.out_features}"
    return f"{sizes}, {activation}" if activation else sizes
