"""Assembles what calls need of a model from its routes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.classification import Classifier
from embedgrpc.engine.tasks.cross_encoding import CrossEncoder
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.reranking import Reranker
from embedgrpc.engine.tasks.routed_embedder import RoutedEmbedder
from embedgrpc.engine.tasks.routed_reranking import RoutedReranker
from embedgrpc.engine.tasks.similarity import SimilarityReranker, can_rank, method_for
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.languages import read_languages
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Kind, RerankMethod, TextRole
from embedgrpc.server.contract.classification_wire import LabelWires
from embedgrpc.server.contract.embed_options import EmbedOptionsReader, RoutedOptionsReader
from embedgrpc.server.loading.catalog import LoadedModel, RoleTokenizer, ServedModel
from embedgrpc.server.loading.prepared_model import PreparedRoutes
from embedgrpc.server.loading.started_route import StartedRoute
from embedgrpc.server.settings.settings import Settings


def assemble(
    model: ServedModel,
    prepared: PreparedRoutes,
    settings: Settings,
    routes: Mapping[str, StartedRoute],
) -> LoadedModel:
    """Return a model from its started routes.

    Raises:
        ModelError: It cannot do what its settings say.
    """
    properties, first = prepared.properties.common, next(iter(routes.values()))
    tasks = _find_tasks(model, prepared, routes)
    labels = properties.labels
    around = first.prepared.tokenizer.pair_texts
    return LoadedModel(
        properties=properties,
        revision=first.prepared.files.revision,
        fingerprint=prepared.fingerprint,
        embedder=tasks.embedder,
        embed_options=tasks.embed_options,
        reranker=tasks.reranker,
        classifier=tasks.classifier,
        labels=LabelWires(labels) if labels else None,
        renders_instruction=around is not None and around.instructed is not None,
        probe=tasks.probe,
        encodings=tuple(Encoding) if tasks.embedder else (),
        weight_type=_weight_type(routes),
        weight_bytes=sum(route.prepared.graph.weight_bytes for route in routes.values()),
        device=first.prepared.backend.device,
        scheduler=first.scheduler,
        admissions=tuple(route.admission for route in routes.values()),
        availability=first.prepared.availability,
        max_characters=settings.max_characters_per_token * properties.max_tokens,
        max_query_tokens=tasks.max_query_tokens,
        has_routes=prepared.properties.has_router,
        text_tokenizers={
            role: RoleTokenizer(
                routes[name].text_tokenizer, routes[name].prepared.properties.max_tokens
            )
            for role, name in prepared.properties.by_role.items()
        },
        languages=read_languages(first.prepared.files.folder),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tasks:
    """What a model can do; see `LoadedModel`."""

    probe: Callable[[str, Call], Awaitable[FloatArray]]
    embedder: Embedder | None = None
    embed_options: EmbedOptionsReader | RoutedOptionsReader | None = None
    reranker: Reranker | None = None
    classifier: Classifier | None = None
    max_query_tokens: int = 0


def _find_tasks(
    model: ServedModel, prepared: PreparedRoutes, routes: Mapping[str, StartedRoute]
) -> _Tasks:
    if prepared.properties.has_router:
        common, by_role = prepared.properties.common, prepared.properties.by_role
        return _route(model, common, by_role, routes)
    (only,) = routes.values()
    properties = only.prepared.properties
    if properties.kind is Kind.EMBEDDING:
        return _embed(model, properties, only)
    if model.settings.rerank_method not in (None, RerankMethod.CROSS_ENCODER):
        kind = properties.kind.replace("_", "-")
        raise ModelError(f"rerank_method is set, but the model is a {kind}")
    parts = (properties, only.prepared.tokenizer, only.pipeline, only.max_characters)
    classifier = Classifier(*parts) if properties.labels else None
    if properties.kind is Kind.CLASSIFIER and classifier:
        if model.settings.rerank_method:
            raise ModelError("rerank_method is set, but the model is a classifier")
        return _Tasks(probe=classifier.probe, classifier=classifier)
    cross_encoder = CrossEncoder(*parts)
    return _Tasks(probe=cross_encoder.probe, reranker=cross_encoder, classifier=classifier)


def _embed(model: ServedModel, properties: ModelProperties, route: StartedRoute) -> _Tasks:
    embedder = _new_embedder(route)
    method = _choose_method(model, properties)
    reranker, max_query_tokens = None, 0
    if method:
        late = properties.late_interaction
        own = late.max_tokens[TextRole.QUERY] if late else properties.max_tokens
        max_query_tokens = model.settings.max_query_tokens or own
        reranker = SimilarityReranker(embedder, method, max_query_tokens)
    return _Tasks(
        probe=embedder.probe,
        embedder=embedder,
        embed_options=_new_reader(model, embedder),
        reranker=reranker,
        max_query_tokens=max_query_tokens,
    )


def _route(
    model: ServedModel,
    properties: ModelProperties,
    by_role: Mapping[TextRole | None, str],
    routes: Mapping[str, StartedRoute],
) -> _Tasks:
    """Return what a model with routes can do: it ranks if it has one for queries and documents."""
    embedders = {name: _new_embedder(route, name) for name, route in routes.items()}
    readers = {name: _new_reader(model, embedder) for name, embedder in embedders.items()}
    embedder = RoutedEmbedder.of(embedders)
    method = _choose_method(model, properties)
    reranker, max_query_tokens = None, 0
    if method and {TextRole.QUERY, TextRole.DOCUMENT} <= by_role.keys():
        if method is not RerankMethod.SIMILARITY:
            raise ModelError(f"rerank_method {method} is not supported for a model with routes")
        asking = embedders[by_role[TextRole.QUERY]]
        max_query_tokens = model.settings.max_query_tokens or asking.properties.max_tokens
        reranker = RoutedReranker(
            asking, embedders[by_role[TextRole.DOCUMENT]], max_query_tokens, method
        )
    return _Tasks(
        probe=embedder.probe,
        embedder=embedder,
        embed_options=RoutedOptionsReader({role: readers[name] for role, name in by_role.items()}),
        reranker=reranker,
        max_query_tokens=max_query_tokens,
    )


def _new_embedder(route: StartedRoute, name: str = "") -> Embedder:
    prepared = route.prepared
    return Embedder(
        prepared.properties,
        prepared.tokenizer,
        route.pipeline,
        route.max_characters,
        graph_outputs=prepared.graph.outputs,
        route=name,
    )


def _new_reader(model: ServedModel, embedder: Embedder) -> EmbedOptionsReader:
    return EmbedOptionsReader(
        embedder, default_truncation=model.choose_truncation(embedder.properties)
    )


def _choose_method(model: ServedModel, properties: ModelProperties) -> RerankMethod | None:
    """Return how an embedding model ranks: as its settings say, or else the best it can.

    Raises:
        ModelError: It cannot rank as its settings say.
    """
    wanted = model.settings.rerank_method
    if wanted is None:
        return method_for(properties.representations)
    if not can_rank(wanted, properties.representations):
        has = ", ".join(properties.representations)
        raise ModelError(f"rerank_method {wanted} is set, but the model has only {has} vectors")
    return wanted


def _weight_type(routes: Mapping[str, StartedRoute]) -> str:
    """Return the type of the weights of the largest route."""
    largest = max(routes.values(), key=lambda route: route.prepared.graph.weight_bytes)
    return largest.prepared.graph.weight_type
