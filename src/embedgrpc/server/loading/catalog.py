"""The models of this server, by every name that a request may use."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from embedgrpc.backends.base import Availability
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.errors import (
    BackendUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedError,
)
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tasks.embedding import Embedder
from embedgrpc.engine.tasks.reranking import Reranker
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.tokenizers.tokenizer import Truncation
from embedgrpc.server.contract.embed_options import EmbedOptionsReader
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX, ModelSettings

_RETRY_DELAY_S = 2.0


class ModelState(Enum):
    """Whether a model can be used."""

    LOADING = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What there is to know and to call of a model once it is loaded.

    Attributes:
        properties: What it is.
        revision: Version of its files; empty when there is none.
        fingerprint: Identifies the space of its vectors, or what its scores come from.
        embedder: Embeds; None for a cross-encoder.
        embed_options: Reads what requests ask of the embedder; None likewise.
        reranker: Scores; None when the model cannot.
        probe: Runs one text past admission; the rows tell whether the model is well.
        encodings: The encodings it can return.
        weight_type: Type of its weights.
        weight_bytes: Their size.
        device: Where it runs.
        scheduler: Runs its batches.
        admission: Counts what is taken in, and what becomes of it.
        availability: Whether what runs it can be reached; None where that is this process.
    """

    properties: ModelProperties
    revision: str
    fingerprint: str
    embedder: Embedder | None
    embed_options: EmbedOptionsReader | None
    reranker: Reranker | None
    probe: Callable[[str, Call], Awaitable[FloatArray]]
    encodings: tuple[Encoding, ...]
    weight_type: str
    weight_bytes: int
    device: str
    scheduler: Scheduler
    admission: Admission
    availability: Availability | None


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model under its names.

    Attributes:
        settings: What the configuration says of it.
        state: Whether it can be used now.
        loaded: What was loaded; None before.
        id: Its name in requests.
    """

    settings: ModelSettings
    state: ModelState = field(default=ModelState.LOADING)
    loaded: LoadedModel | None = field(default=None)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Finds its name once: every call asks for it."""
        self.id = self.settings.name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        return self.settings.aliases

    @property
    def source(self) -> str:
        """Where its files come from."""
        return self.settings.source

    @property
    def default_truncation(self) -> Truncation:
        """What is done with long texts when a request does not say."""
        return self.settings.default_truncation

    def ready(self) -> LoadedModel:
        """Returns what can be called.

        Raises:
            BackendUnavailableError: It is being loaded, or failed to load, or is not healthy.
        """
        if self.state is ModelState.READY and self.loaded is not None:
            return self.loaded
        never = self.state is ModelState.FAILED and self.loaded is None
        what = "is being loaded" if self.state is ModelState.LOADING else "cannot be run now"
        raise BackendUnavailableError(
            f"the model {self.id} {'could not be loaded' if never else what}",
            metadata={"label": "model_not_ready", "model": self.id},
            # What could not be loaded stays so until somebody changes something.
            retry_delay_s=None if never else _RETRY_DELAY_S,
        )

    def embedder(self) -> tuple[LoadedModel, Embedder, EmbedOptionsReader]:
        """Returns what embeds, and what reads how.

        Raises:
            BackendUnavailableError: The model cannot be used now.
            UnsupportedError: It does not embed.
        """
        loaded = self.ready()
        if loaded.embedder is None or loaded.embed_options is None:
            raise UnsupportedError(
                f"the model {self.id} does not embed",
                field="model",
                metadata={"label": "wrong_task", "model": self.id},
            )
        return loaded, loaded.embedder, loaded.embed_options

    def reranker(self) -> tuple[LoadedModel, Reranker]:
        """Returns what scores.

        Raises:
            BackendUnavailableError: The model cannot be used now.
            UnsupportedError: It does not score.
        """
        loaded = self.ready()
        if loaded.reranker is None:
            raise UnsupportedError(
                f"the model {self.id} does not rank documents",
                field="model",
                metadata={"label": "wrong_task", "model": self.id},
            )
        return loaded, loaded.reranker


class Catalog:
    """Finds models by id and alias.

    Args:
        models: The models, the default first; at least one, all names different.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in self._models:
            for name in (model.id, *model.aliases):
                self._by_name[name] = model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def find(self, name: str, *, field: str = "model") -> ServedModel:
        """Finds a model; the empty name is the default model's.

        Raises:
            InvalidRequestError: The name is too long to be one.
            ModelNotFoundError: No model has this name.
        """
        if not name:
            return self._models[0]
        if len(name) > NAME_CHARACTERS_MAX:
            raise InvalidRequestError(
                f"{field} has {len(name)} characters; the limit is {NAME_CHARACTERS_MAX}",
                field=field,
            )
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFoundError(
                f"no model of this name is served, which has {len(name)} characters;"
                " ListModels tells which are",
                field=field,
                metadata={"label": "model_not_found"},
            )
        return model
