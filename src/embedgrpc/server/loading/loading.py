"""Loads models: from their settings to something that can be called."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from embedgrpc.backends.base import Backend, BackendError, DeviceError
from embedgrpc.backends.onnx import Device, OnnxBackend
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.pipeline import Pipeline
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tasks.classification import Classifier
from embedgrpc.engine.tasks.cross_encoding import CrossEncoder
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.reranking import Reranker
from embedgrpc.engine.tasks.similarity import SimilarityReranker, can_rank, method_for
from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.machine.cores import available_cores
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.languages import read_languages
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs import graph
from embedgrpc.models.kinds import Kind, RerankMethod, TextRole, WeightType
from embedgrpc.models.sources import source
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.validation.child_process import ChildGroup
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from embedgrpc.server.contract.classification_wire import LabelWires
from embedgrpc.server.contract.embed_options import EmbedOptionsReader
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.server.loading.daemon_threads import run_in_daemon_thread
from embedgrpc.server.loading.prepared_model import (
    PreparedModel,
    RunnableGraph,
    default_batch_tokens,
    overhead_tokens,
)
from embedgrpc.server.settings.model_settings import default_model
from embedgrpc.server.settings.settings import Settings

# Half precision is slower than single on CPUs, and ONNX Runtime has no int8 products for GPUs.
_DEVICES: dict[WeightType, Device] = {WeightType.FLOAT16: "cuda", WeightType.INT8: "cpu"}

# The expected failures of loading; the message of each is one line.
LOAD_ERRORS: tuple[type[Exception], ...] = (ModelError, DeviceError, BackendError)

# Opens the graph at the path. Called off the event loop.
OpenBackend = Callable[[ServedModel, Path, Settings], Backend]


def served_models(settings: Settings) -> tuple[ServedModel, ...]:
    """Return the models to serve: those of the settings, or else the default model."""
    return tuple(ServedModel(one) for one in settings.models or (default_model(),))


def count_threads(settings: Settings) -> int:
    """Return how many CPU threads a run of a model in this process uses."""
    return settings.intra_op_threads or available_cores()


def open_onnx(model: ServedModel, graph_path: Path, settings: Settings) -> Backend:
    """Open a graph with ONNX Runtime in this process.

    Raises:
        DeviceError: The device cannot be used.
        BackendError: The graph cannot be loaded.
    """
    device = settings.device
    only = _DEVICES.get(model.settings.weight_type, device)
    if device not in ("auto", only):
        raise DeviceError(
            f"weight_type {model.settings.weight_type} runs on {only} alone: set device to {only}"
        )
    device = only
    return OnnxBackend(
        graph_path,
        device=device,
        lanes=settings.lanes,
        intra_op_threads=settings.intra_op_threads,
        spin_duration_us=settings.spin_duration_us,
        gpu_mem_limit_bytes=settings.gpu_memory_bytes,
    )


async def load(
    model: ServedModel,
    settings: Settings,
    *,
    observers: Iterable[BatchObserver],
    resources: ExitStack,
    open_backend: OpenBackend,
) -> LoadedModel:
    """Load a model and start its threads.

    Args:
        model: The model.
        settings: The settings of the server.
        observers: Receive a report of every batch.
        resources: Closes the model; that blocks.
        open_backend: Opens its graph, unless Triton runs it.

    Raises:
        ModelError: Its files cannot be used.
        DeviceError: The device cannot be used.
        BackendUnreachableError: No server can be reached; a retry may succeed.
        BackendError: The graph cannot be loaded.
    """
    loop = asyncio.get_running_loop()
    children = ChildGroup()
    try:
        prepared = await run_in_daemon_thread(
            lambda: prepare_model(model, settings, open_backend, loop, children)
        )
    finally:
        # Ends the child process that reads the model's files, where the load was cancelled.
        children.end()
    resources.callback(prepared.backend.close)
    tokens = settings.batch_tokens or prepared.batch_tokens
    admission = Admission(
        max_inputs=settings.max_queued_inputs,
        max_tokens=settings.max_queued_tokens,
        batch_tokens=tokens,
        max_queue_s=settings.max_queue_s,
    )
    budget = BatchBudget(
        tokens=tokens,
        sequences=min(
            settings.batch_sequences, prepared.batch_sequences or settings.batch_sequences
        ),
        overhead_tokens=prepared.overhead_tokens,
    )
    scheduler = Scheduler(
        model=model.id,
        backend=prepared.backend,
        budget=budget,
        bulk_batch_s=settings.bulk_batch_ms / 1000,
        weights=settings.caller_weights,
        pad_token_id=prepared.properties.pad_token_id,
        pad_left=prepared.properties.padding_side == "left",
        admission=admission,
        observers=observers,
        loop=loop,
    )
    resources.callback(scheduler.close)
    if prepared.availability is not None:
        # Closed before the scheduler, whose lanes may wait for a server that never answers.
        resources.callback(prepared.backend.close)
    tokenizing = TokenizingThreads(
        prepared.tokenizer, threads=settings.tokenizer_threads, name=model.id
    )
    resources.callback(tokenizing.close)
    locating = None
    if prepared.tokenizer.locator is not None:
        locating = TokenizingThreads(
            prepared.tokenizer.locator, threads=1, name=f"{model.id}-places"
        )
        resources.callback(locating.close)
    pipeline = Pipeline(
        admission=admission, tokenizing=tokenizing, scheduler=scheduler, locating=locating
    )
    text_tokenizer = TextTokenizer(
        prepared.tokenizer,
        counting=tokenizing,
        locating=locating,
        max_characters=settings.max_characters_per_token * prepared.properties.max_tokens,
    )
    return _assemble(
        model,
        prepared,
        settings,
        pipeline=pipeline,
        scheduler=scheduler,
        admission=admission,
        text_tokenizer=text_tokenizer,
    )


def prepare_model(
    model: ServedModel,
    settings: Settings,
    open_backend: OpenBackend,
    loop: asyncio.AbstractEventLoop | None = None,
    children: ChildGroup | None = None,
) -> PreparedModel:
    """Read a model's files and open its graph. Blocks for seconds or minutes.

    Args:
        model: The model.
        settings: The settings of the server.
        open_backend: Opens its graph, unless Triton runs it.
        loop: Runs the calls to Triton; None to run them in a new thread.
        children: Ends the processes that read the model's files.

    Raises:
        ModelError: Its files cannot be used.
        DeviceError: The device cannot be used.
        BackendUnreachableError: No server can be reached.
        BackendError: The graph cannot be loaded.
    """
    children = children or ChildGroup()
    if is_triton_source(model.source):
        # Most servers do without it, and its library takes longer to import than a model to load.
        from embedgrpc.server.loading.triton import prepare_on_triton  # noqa: PLC0415 - see above

        return prepare_on_triton(
            model.settings,
            settings,
            loop,
            children,
            prepare_fallback=lambda: _prepare_here(
                model, model.settings.fallback, settings, open_backend, children
            ),
        )
    return _prepare_here(model, model.source, settings, open_backend, children)


def _prepare_here(
    model: ServedModel,
    place: str,
    settings: Settings,
    open_backend: OpenBackend,
    children: ChildGroup,
) -> PreparedModel:
    """Prepare a model that runs in this process, from the source `place`."""
    files = source.resolve(place)
    escape = model.settings.escape_special_tokens
    cache_dir = settings.cache_dir

    def read(validated: FileDigests) -> tuple[properties.ModelProperties, Tokenizer, graph.Graph]:
        described = properties.read(files, model.settings.overrides)
        digest = validated.digest_of(
            find_tokenizer_file(described.transformer_folder), files.folder
        )
        tokenizer = Tokenizer.load(described, escape_special_tokens=escape, digest=digest)
        built = graph.prepare(files, described, cache_dir=cache_dir, may_build=False)
        return described, tokenizer, built

    validation = Validation(
        files=files,
        overrides=model.settings.overrides,
        escape_special_tokens=escape,
        cache_dir=cache_dir,
        limits=settings.validation_limits,
    )
    described, tokenizer, built = load_validated(validation, children, read)
    backend = open_backend(model, built.path, settings)
    runnable = RunnableGraph(
        outputs=built.outputs,
        content_hash=built.content_hash,
        weight_type=built.weight_type,
        weight_bytes=built.weight_bytes,
        place=str(built.path),
    )
    has_table = described.table is not None or described.weight_table is not None
    return PreparedModel(
        files,
        described,
        tokenizer,
        runnable,
        backend,
        default_batch_tokens(on_gpu=backend.device != "cpu", has_table=has_table),
        overhead_tokens=overhead_tokens(has_table=has_table),
    )


def _choose_method(model: ServedModel, prepared: PreparedModel) -> RerankMethod | None:
    """Return how an embedding model ranks: as its settings say, or else the best it can.

    Raises:
        ModelError: It cannot rank as its settings say.
    """
    wanted = model.settings.rerank_method
    if wanted is None:
        return method_for(prepared.properties.representations)
    if not can_rank(wanted, prepared.properties.representations):
        has = ", ".join(prepared.properties.representations)
        raise ModelError(f"rerank_method {wanted} is set, but the model has only {has} vectors")
    return wanted


def _assemble(
    model: ServedModel,
    prepared: PreparedModel,
    settings: Settings,
    *,
    pipeline: Pipeline,
    scheduler: Scheduler,
    admission: Admission,
    text_tokenizer: TextTokenizer,
) -> LoadedModel:
    max_characters = settings.max_characters_per_token * prepared.properties.max_tokens
    common = (prepared.properties, prepared.tokenizer, pipeline, max_characters)
    embedder: Embedder | None = None
    embed_options: EmbedOptionsReader | None = None
    reranker: Reranker | None = None
    labels = prepared.properties.labels
    classifier = Classifier(*common) if labels else None
    max_query_tokens = 0
    if prepared.properties.kind is Kind.EMBEDDING:
        embedder = Embedder(*common, graph_outputs=prepared.graph.outputs)
        probe = embedder.probe
        embed_options = EmbedOptionsReader(
            embedder, default_truncation=model.choose_truncation(prepared.properties)
        )
        method = _choose_method(model, prepared)
        if method:
            late = prepared.properties.late_interaction
            own = late.max_tokens[TextRole.QUERY] if late else prepared.properties.max_tokens
            max_query_tokens = model.settings.max_query_tokens or own
            reranker = SimilarityReranker(embedder, method, max_query_tokens)
    elif model.settings.rerank_method not in (None, RerankMethod.CROSS_ENCODER):
        kind = prepared.properties.kind.replace("_", "-")
        raise ModelError(f"rerank_method is set, but the model is a {kind}")
    elif prepared.properties.kind is Kind.CLASSIFIER and classifier:
        if model.settings.rerank_method:
            raise ModelError("rerank_method is set, but the model is a classifier")
        probe = classifier.probe
    else:
        cross_encoder = reranker = CrossEncoder(*common)
        probe = cross_encoder.probe
    around = prepared.tokenizer.pair_texts
    return LoadedModel(
        properties=prepared.properties,
        revision=prepared.files.revision,
        fingerprint=prepared.graph.content_hash,
        embedder=embedder,
        embed_options=embed_options,
        reranker=reranker,
        classifier=classifier,
        labels=LabelWires(labels) if labels else None,
        renders_instruction=around is not None and around.instructed is not None,
        probe=probe,
        encodings=tuple(Encoding) if embedder else (),
        weight_type=prepared.graph.weight_type,
        weight_bytes=prepared.graph.weight_bytes,
        device=prepared.backend.device,
        scheduler=scheduler,
        admission=admission,
        availability=prepared.availability,
        max_characters=max_characters,
        max_query_tokens=max_query_tokens,
        text_tokenizer=text_tokenizer,
        languages=read_languages(prepared.files.folder),
    )
