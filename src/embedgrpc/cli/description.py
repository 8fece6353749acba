"""What `embedgrpc inspect` tells about a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedgrpc.cli.validated import check_validated
from embedgrpc.engine.tasks.similarity import method_for
from embedgrpc.models.folder import properties
from embedgrpc.models.graphs import graph
from embedgrpc.models.graphs.stored_type import find_stored_type
from embedgrpc.models.kinds import Kind, RerankMethod
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

# Its name, its value as JSON has it, and the file and key that say so; empty where none does.
Row = tuple[str, Any, str]


def describe(model: ModelSettings, settings: Settings) -> Iterator[Row]:
    """Describes a model, without running it.

    Args:
        model: Which.
        settings: Where graphs are kept, and the limits of the process that reads files first.

    Yields:
        What was found.

    Raises:
        ModelError: The model cannot be served.
    """
    files = resolve(model.source)
    check_validated(files, model, settings)
    read = properties.read(files, model.overrides)
    Tokenizer.load(read)
    identity = graph.identify(files, read, cache_dir=settings.cache_dir)
    embeds = read.kind is Kind.EMBEDDING
    method = method_for(read.representations) if embeds else RerankMethod.CROSS_ENCODER
    origins = read.origins

    def row(name: str, value: Any) -> Row:
        return name, value, origins.get(name, "default")

    yield "source", model.source, ""
    yield "revision", files.revision, ""
    yield "folder", str(files.folder), ""
    yield row("kind", read.kind)
    yield row("model_type", read.model_type)
    weights = [identity.weight_file.path, *identity.external]
    yield "weights", [_within(path, files.folder) for path in weights], ""
    yield "weights_format", identity.weight_file.format, ""
    yield "weights_type", find_stored_type(identity.weight_file), ""
    yield "weights_bytes", sum(path.stat().st_size for path in weights), ""
    yield "tokenizer", _within(read.transformer_folder / "tokenizer.json", files.folder), ""
    yield row("max_tokens", read.max_tokens)
    yield row("padding_side", read.padding_side)
    yield row("pad_token_id", read.pad_token_id)
    yield row("lowercase", read.lowercase)
    if embeds:
        yield row("representations", list(read.representations))
        yield row("poolings", list(read.poolings))
        yield row("dense_layers", [_describe_layer(layer) for layer in read.dense_layers])
        yield row("normalize", read.normalize)
        if read.dimensions:
            yield row("dimensions", read.dimensions)
        for name in ("sparse_dimensions", "multi_vector_dimensions"):
            if getattr(read, name):
                yield row(name, getattr(read, name))
        yield row("prompts", dict(read.prompts))
        yield row("default_prompt_name", read.default_prompt_name)
        yield row("similarity", read.similarity)
    else:
        yield row("activation", read.activation)
    yield "rerank_method", method, ""
    yield "fingerprint", identity.content_hash, ""


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _describe_layer(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    name = type(layer).__name__.removesuffix("Layer")
    sizes = f"{name} {layer.in_features} -> {layer.out_features}"
    return f"{sizes}, {activation}" if activation else sizes
