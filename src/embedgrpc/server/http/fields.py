"""The types of keys in bodies, with what the description says of them.

What msgspec itself checks stands in the types of `numbers`. The rest here is for the description
alone: the engine's own rules refuse what breaks it, by the contract's names and limits.
"""

from typing import Annotated, Any, Final, TypeAlias

import msgspec

from embedgrpc.server.http.numbers import Int32

# A limit of a schema may be the name of a setting; the description then has its value.
INPUTS_SETTING: Final = "max_inputs"
# Stands for `default` until the description is complete.
DEFAULT_KEY: Final = "x-default"
_NAME_CHARACTERS: Final = 128
_PROMPT_CHARACTERS: Final = 8192
_TRUNCATIONS: Final = ["none", "start", "end", "left", "right"]


def about(text: str, **schema: Any) -> msgspec.Meta:
    """Return what the description says of a key.

    Args:
        text: A sentence or two.
        schema: Keywords of JSON Schema; `default` is what its absence means.
    """
    if "default" in schema:
        # That of the type itself, null, would win.
        schema[DEFAULT_KEY] = schema.pop("default")
    return msgspec.Meta(description=text, extra_json_schema=schema or None)


def one_of(*words: str) -> msgspec.Meta:
    """Return that a string is one of some words."""
    return msgspec.Meta(extra_json_schema={"enum": list(words)})


def at_most(count: int) -> msgspec.Meta:
    """Return that a list has so many entries at the most."""
    return msgspec.Meta(extra_json_schema={"maxItems": count})


# A list with an entry for each input of a call.
INPUTS: Final = msgspec.Meta(extra_json_schema={"minItems": 1, "maxItems": INPUTS_SETTING})
Texts: TypeAlias = Annotated[list[str], INPUTS]
Pair: TypeAlias = Annotated[list[str], at_most(2)]
AnyTokenId: TypeAlias = Annotated[
    int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 2**32 - 1})
]
TextsOrIds: TypeAlias = Annotated[list[str | AnyTokenId | list[AnyTokenId]], INPUTS]

Model: TypeAlias = Annotated[
    str | None,
    about(
        "The model: an id or an alias. Without it the header embedgrpc-model counts, and then the"
        " server's default model.",
        maxLength=_NAME_CHARACTERS,
    ),
]
Dimensions: TypeAlias = Annotated[
    Int32 | None,
    about(
        "How many numbers of each vector to return, for models that allow it; by default all.",
        minimum=1,
    ),
]
InputType: TypeAlias = Annotated[
    str | None,
    about(
        "What the texts are for, which chooses the model's prompt.",
        enum=[
            "query",
            "document",
            "passage",
            "search_query",
            "search_document",
            "classification",
            "clustering",
            "similarity",
            None,
        ],
    ),
]
PromptName: TypeAlias = Annotated[
    str | None,
    about(
        "The name of one of the model's prompts, which goes before each text.",
        maxLength=_NAME_CHARACTERS,
    ),
]
Truncate: TypeAlias = Annotated[
    bool | str | None,
    about(
        "What happens to a text that is longer than the model reads: none refuses it, start and"
        " left cut its start, end and right its end; true means end, and false none. By default it"
        " is what the model's settings say.",
        enum=[True, False, *_TRUNCATIONS, None],
    ),
]
TruncateWord: TypeAlias = Annotated[
    str | None,
    about(
        "What happens to a text that is longer than the model reads: NONE refuses it, START cuts"
        " its start, END its end. By default it is what the model's settings say.",
        pattern="^(?i:none|start|end|left|right)$",
    ),
]
TeiTruncate: TypeAlias = Annotated[
    bool | None,
    about(
        "Whether a text that is longer than the model reads is cut; if false, it is refused. By"
        " default it is what the model's settings say."
    ),
]
TruncationDirection: TypeAlias = Annotated[
    str | None,
    about(
        "Which end of a text is cut; left and right in upper or lower case.",
        pattern="^(?i:none|start|end|left|right)$",
        default="right",
    ),
]
Normalize: TypeAlias = Annotated[
    bool | None, about("Whether vectors have length 1. By default it is what the model does.")
]
TeiNormalize: TypeAlias = Annotated[
    bool | None, about("Whether vectors have length 1.", default=True)
]
RawScores: TypeAlias = Annotated[
    bool | None,
    about(
        "Whether scores are the model's own numbers, without a sigmoid or softmax.", default=False
    ),
]
Instruction: TypeAlias = Annotated[
    str | None,
    about(
        "What makes a document relevant, for models that take an instruction.",
        maxLength=_PROMPT_CHARACTERS,
    ),
]
OwnLimit: TypeAlias = Annotated[
    Int32 | None,
    about("Only -1, which means the model's own limit, is accepted.", enum=[-1, None]),
]
OneText: TypeAlias = Annotated[str | TextsOrIds, about("A text, or a list of texts.")]
TextOrTexts: TypeAlias = Annotated[str | Texts, about("A text, or a list of texts.")]
