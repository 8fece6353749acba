"""What can be set for one model, most of it instead of what the model's own files say."""

import dataclasses
import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from embedgrpc.engine.tasks.reranking import RerankMethod
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.kinds import Activation, PaddingSide, Pooling, Similarity, WeightType
from embedgrpc.models.sources.source import short_name
from embedgrpc.models.sources.triton_source import is_triton_source, parse_triton_source
from embedgrpc.models.tokenizers.truncation import Truncation

# What a model may be called in requests.
NAME_CHARACTERS_MAX = 128
_NAME = rf"[\w.\-/:]{{1,{NAME_CHARACTERS_MAX}}}"
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
# No slash in the id: a folder's path may hold an equals sign.
_ID_AND_SOURCE = re.compile(r"([\w.\-:]+)=(.*)", re.DOTALL)


class ModelSettings(BaseModel):
    """One model to serve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        min_length=1,
        description="A folder, package:IMPORT_NAME/SUBFOLDER for an installed package, or"
        " hf:ORG/NAME[@REVISION] or ORG/NAME[@REVISION] for the Hugging Face Hub, or"
        " triton:HOST:PORT[,HOST:PORT...]/MODEL[:VERSION], with triton+tls: for TLS, for a model"
        " that runs on Triton and takes token ids, or texts; a folder wins",
    )
    files: str = Field(
        default="",
        description="For a model that runs on Triton: the source of its tokenizer and of what else"
        " its files say, instead of the one that Triton's configuration of it names. No weights"
        " are fetched. Not for models that take texts: they tokenize by themselves",
    )
    fallback: str = Field(
        default="",
        description="For a model that runs on Triton: a source of the same model, which runs here"
        " while no Triton server can be called. Its fingerprint must be that of the model on"
        " Triton. It is loaded at the start, and takes the memory of a model that runs here; it is"
        " as slow as this machine. Tokenizer and what else the model's files say are taken from it"
        " where files is not set",
    )
    id: str = Field(
        default="",
        pattern=f"^({_NAME})?$",
        description="Name in requests; empty takes it from the source",
    )
    aliases: tuple[Name, ...] = Field(default=(), description="Other names in requests")
    default_truncation: Truncation = Field(
        default=Truncation.END,
        description="What is done with long texts when a request does not say: none, end or start",
    )
    escape_special_tokens: bool = Field(
        default=False,
        description="Take a special token's name inside a text, such as [SEP], as plain characters;"
        " the reference implementations take it as the token",
    )
    rerank_method: RerankMethod | None = Field(
        default=None,
        description="similarity, late_interaction or hybrid: how an embedding model ranks; empty"
        " takes hybrid where the model has all representations, else what it can",
    )
    max_query_tokens: int = Field(
        default=0,
        ge=0,
        description="The most tokens of a query when an embedding model ranks; 0 takes the model's"
        " limit",
    )
    pooling: tuple[Pooling, ...] = Field(
        default=(), description="How token vectors become one, instead of what the files say"
    )
    normalize: bool | None = Field(
        default=None,
        description="Whether vectors get unit length, instead of what the files say; must be set"
        " for a model on Triton that takes texts",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="The longest sequence, instead of what the files say; for a model on Triton"
        " that takes texts, in bytes of UTF-8, 32768 where it is not set",
    )
    prompts: dict[str, str] = Field(
        default={}, description="Prompts by name, beside or instead of those of the files"
    )
    default_prompt_name: str | None = Field(
        default=None, description="The prompt when a request names none"
    )
    padding_side: PaddingSide | None = Field(default=None, description="left or right")
    pad_token_id: int | None = Field(default=None, ge=0, description="The token that fills")
    similarity: Similarity | None = Field(
        default=None, description="cosine, dot, euclidean or manhattan"
    )
    lowercase: bool | None = Field(default=None, description="Whether texts are lowercased")
    activation: Activation | None = Field(
        default=None, description="sigmoid or identity: what makes a cross-encoder's score"
    )
    file: str = Field(
        default="", description="The file of weights to take, such as onnx/model_quantized.onnx"
    )
    output: str = Field(default="", description="The output of an ONNX graph to take")
    task_id: int | None = Field(default=None, description="For graphs that choose a task by number")
    weight_type: WeightType = Field(
        default=WeightType.FLOAT32,
        description="float32; float16, on a GPU; or int8, on the CPU: converted by embedgrpc,"
        " faster and a little less exact",
    )

    @property
    def name(self) -> str:
        """Its name in requests: its id, or else the last part of its source."""
        return self.id or short_name(self.source) or self.source

    @property
    def overrides(self) -> ModelOverrides:
        """What stands here instead of in the model's files."""
        names = [field.name for field in dataclasses.fields(ModelOverrides)]
        return ModelOverrides(**{name: getattr(self, name) for name in names})

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
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

    @field_validator("pooling", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

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
    def _check_name(self) -> Self:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(
                f"the last part of {self.source!r} is no name for requests: give an id"
            )
        if len({self.name, *self.aliases}) <= len(self.aliases):
            raise ValueError(f"{self.name!r} has an alias twice, or one that is its id")
        return self


def split_source(text: str) -> tuple[str, str]:
    """Split [ID=]SOURCE into the id, empty where none is given, and the source."""
    both = _ID_AND_SOURCE.fullmatch(text)
    return (both[1], both[2]) if both else ("", text)
