"""The models of a server, by id and alias."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from embedgrpc.backends.base import Availability
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.errors import (
    BackendUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tasks.classification import Classifier
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.reranking import Reranker
from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import TextRole, Truncation
from embedgrpc.server.caller import Service, current_caller
from embedgrpc.server.contract.classification_wire import LabelWires
from embedgrpc.server.contract.embed_options import EmbedOptionsReader, RoutedOptionsReader
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.contract.options import no_route
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX, ModelSettings

_RETRY_DELAY_S = 2.0


class ModelState(Enum):
    """Whether a model can be called."""

    LOADING = auto()
    READY = auto()
    # It could not be loaded, and that will not change.
    FAILED = auto()
    # Its backend is away, or what it is loaded from: the server tries again.
    UNAVAILABLE = auto()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose threads run, and all that calls need of it.

    Attributes:
        revision: The version of its files; empty when there is none.
        fingerprint: Identifies its vector space, or what its scores come from.
        embedder: None when the model does not embed.
        embed_options: Reads the options of embedding requests; None when it does not embed.
        reranker: None when the model cannot rank.
        classifier: None when the model has no labels.
        labels: Encodes its labels; None when it has none.
        renders_instruction: Whether the model's chat template has a place for an instruction.
        probe: Runs one text without admission and returns its row.
        weight_bytes: 0 where it is unknown.
        availability: Whether the backend can be reached; None where it is in this process.
        max_characters: Most characters of a text; a longer one is cut or refused.
        max_query_tokens: Most tokens of a query; 0 where the model's limit applies.
        languages: The languages that its model card names.
        admissions: Those of its routes.
        has_routes: Whether the role of a text chooses how it is computed.
        text_tokenizers: Tokenize without running the model, by the role of the texts, None for no
            role. A model without routes has one, for all.
    """

    properties: ModelProperties
    revision: str
    fingerprint: str
    embedder: Embedder | None
    embed_options: EmbedOptionsReader | RoutedOptionsReader | None
    reranker: Reranker | None
    classifier: Classifier | None
    labels: LabelWires | None
    renders_instruction: bool
    probe: Callable[[str, Call], Awaitable[FloatArray]]
    encodings: tuple[Encoding, ...]
    weight_type: str
    weight_bytes: int
    device: str
    scheduler: Scheduler
    admissions: tuple[Admission, ...]
    availability: Availability | None
    max_characters: int
    max_query_tokens: int
    languages: tuple[str, ...]
    has_routes: bool
    text_tokenizers: "Mapping[TextRole | None, RoleTokenizer]"

    def tokenizer_for(self, role: TextRole | None, *, field: str = "options") -> "RoleTokenizer":
        """Return what tokenizes the texts of a role; a model without routes has one for all.

        Args:
            role: The role; None for no role.
            field: The path of the options in the request.

        Raises:
            UnsupportedError: The model has no route for such texts.
        """
        found = self.text_tokenizers.get(role if self.has_routes else None)
        if found is None:
            raise no_route(role, self.text_tokenizers.keys(), field=field)
        return found

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Tokenizes texts that have no role.

        Raises:
            UnsupportedError: The model has no route for such texts.
        """
        return self.tokenizer_for(None).tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts are tokenized here, and not by the model's own server."""
        return all(one.tokenizer.is_available for one in self.text_tokenizers.values())


@dataclass(frozen=True, slots=True)
class RoleTokenizer:
    """What tokenizes texts of a role.

    Attributes:
        max_tokens: The longest sequence of such a text, special tokens included.
    """

    tokenizer: TextTokenizer
    max_tokens: int


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model of the configuration, loaded or not.

    Attributes:
        loaded: The loaded model; None before it is loaded, or when that failed.
        problem: Why it could not be loaded; empty unless it failed.
        load_s: How long it took to load, in seconds.
        id: Its name in requests.
    """

    settings: ModelSettings
    state: ModelState = field(default=ModelState.LOADING)
    loaded: LoadedModel | None = field(default=None)
    problem: str = ""
    load_s: float = 0.0
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Store the name: every call reads it, and the settings compute it."""
        self.id = self.settings.name

    @property
    def names(self) -> tuple[str, ...]:
        """Its id and its aliases."""
        return (self.id, *self.settings.aliases)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        return self.settings.aliases

    @property
    def source(self) -> str:
        """The source of its files, or of its Triton servers."""
        return self.settings.source

    @property
    def default_truncation(self) -> Truncation:
        """The truncation of requests that do not set one."""
        properties = self.loaded.properties if self.loaded else None
        return self.choose_truncation(properties)

    def choose_truncation(self, properties: ModelProperties | None) -> Truncation:
        """Return the truncation of requests that do not set one."""
        own = properties.truncation if properties else Truncation.END
        return self.settings.default_truncation or own

    def ready(self) -> LoadedModel:
        """Return the loaded model.

        Raises:
            BackendUnavailableError: It is being loaded, or failed to load, or is unhealthy.
        """
        if self.state is ModelState.READY and self.loaded is not None:
            return self.loaded
        never = self.state is ModelState.FAILED and self.loaded is None
        what = "is being loaded" if self.state is ModelState.LOADING else "cannot be run now"
        raise BackendUnavailableError(
            f"the model {self.id} {'could not be loaded' if never else what}",
            metadata={"model": self.id},
            # A model that could not be loaded stays so until its files or settings change.
            retry_delay_s=None if never else _RETRY_DELAY_S,
        )

    def embedder(
        self, *, field: str = "model"
    ) -> tuple[LoadedModel, Embedder, EmbedOptionsReader | RoutedOptionsReader]:
        """Return the model, its embedder and the reader of its options.

        Args:
            field: The field of the request that names the model.

        Raises:
            BackendUnavailableError: The model cannot be called now.
            UnsupportedError: It does not embed.
        """
        loaded = self.ready()
        if loaded.embedder is None or loaded.embed_options is None:
            raise self._unable("does not embed", field=field)
        return loaded, loaded.embedder, loaded.embed_options

    def reranker(self) -> tuple[LoadedModel, Reranker]:
        """Return the model and its reranker.

        Raises:
            BackendUnavailableError: The model cannot be called now.
            UnsupportedError: It does not rank.
        """
        loaded = self.ready()
        if loaded.reranker is None:
            several = f": it classifies by {len(loaded.labels)} labels" if loaded.labels else ""
            raise self._unable(f"does not rank documents{several}", field="model")
        return loaded, loaded.reranker

    def classifier(self, *, field: str = "model") -> tuple[LoadedModel, Classifier, LabelWires]:
        """Return the model, its classifier and what encodes its labels.

        Args:
            field: The field of the request that names the model.

        Raises:
            BackendUnavailableError: The model cannot be called now.
            UnsupportedError: It has no labels.
        """
        loaded = self.ready()
        if loaded.classifier is None or loaded.labels is None:
            raise self._unable("has no labels to classify by", field=field)
        return loaded, loaded.classifier, loaded.labels

    def _unable(self, what: str, *, field: str) -> UnsupportedError:
        return UnsupportedError(
            f"the model {self.id} {what}",
            field=field,
            metadata={"label": "WRONG_TASK", "model": self.id},
        )


class Catalog:
    """Finds models by id and alias.

    Args:
        models: The models, the default first; at least one, all names different.

    Attributes:
        draining: Models that are not found any more, but still called.
        on_found: Called with each model that `find` returns, on the event loop.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.draining: tuple[ServedModel, ...] = ()
        self.on_found: Callable[[ServedModel], None] = lambda _: None
        self.replace(models)

    def replace(self, models: Iterable[ServedModel]) -> None:
        """Serve other models from now on; calls go on with those that they have found.

        Args:
            models: The models, the default first; at least one, all names different.
        """
        self._models = tuple(models)
        self._by_name = {name: model for model in self._models for name in model.names}

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self._models[0]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def get(self, name: str) -> ServedModel | None:
        """Return the model of a name, for the server itself; None if there is none."""
        return self._by_name.get(name)

    def usable(self) -> list[ServedModel]:
        """Return the models that the running call's caller may use."""
        caller = current_caller()
        return [one for one in self._models if caller.may_use_model(one.names)]

    def find(self, name: str, *, field: str = "model") -> ServedModel:
        """Return the model of a name; the default model for the empty name.

        Raises:
            InvalidRequestError: The name is too long.
            ModelNotFoundError: No model has this name.
            PermissionDeniedError: The running call's caller may not use it.
        """
        model = self._find(name, field=field)
        caller = current_caller()
        if not caller.may_use_model(model.names):
            raise PermissionDeniedError(
                f"{caller.name} may not use the model {model.id}{self._list('it may use')}",
                field=field,
                metadata={"label": "MODEL_DENIED", "model": model.id},
            )
        return model

    def _list(self, what: str) -> str:
        """Return what names the models in a message; empty for a caller that may not list them."""
        if not current_caller().may_use(Service.MODELS):
            return ""
        return f"; {what}: {list_names([one.id for one in self.usable()])}"

    def _find(self, name: str, *, field: str) -> ServedModel:
        if not name:
            self.on_found(self.default)
            return self.default
        if len(name) > NAME_CHARACTERS_MAX:
            raise InvalidRequestError(
                f"{field} has {len(name)} characters; the limit is {NAME_CHARACTERS_MAX}",
                field=field,
            )
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFoundError(
                f"no model {show_name(name)}{self._list('served')}",
                field=field,
            )
        self.on_found(model)
        return model
