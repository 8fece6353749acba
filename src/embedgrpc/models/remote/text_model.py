"""What a model on a server is that takes texts and tokenizes by itself: no file describes it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.onnx_outputs import Shape
from embedgrpc.models.folder.m3_names import DENSE_NAMES
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING
from embedgrpc.models.kinds import Activation, Kind, Representation, Similarity

# How long a text may be where no setting says it. What such a model reads of it is its own affair:
# this is some 8000 tokens of English, more than most of them do.
_BYTES_MAX = 32_768
# What can be set for a model of which nothing but the vectors is known.
_SETTINGS = frozenset(
    {"normalize", "max_tokens", "prompts", "default_prompt_name", "similarity", "output"}
)


def describe_text_model(
    outputs: Mapping[str, Shape], overrides: ModelOverrides, *, model: str
) -> ModelProperties:
    """Says what a model is, from its outputs and the configuration alone.

    Its tokens are bytes of UTF-8, as `Tokenizer.of_bytes` makes them.

    Args:
        outputs: The length of each axis after the batch by output, None where it is free.
        overrides: What the configuration says about it.
        model: What the server calls it, for messages.

    Returns:
        A model of dense vectors; `output` names the one that holds them.

    Raises:
        ModelError: No output is a vector for each text, or the configuration says too little
            about the model, or what nobody can do for such a model.
    """
    _check_overrides(overrides, model)
    output = _find_output(outputs, overrides.output, model)
    dimensions = outputs[output][0]
    if dimensions is None:
        raise ModelError(
            f"the model {model} on Triton: output {output} has no fixed length: set its dims in"
            " config.pbtxt"
        )
    if overrides.normalize is None:
        raise ModelError(
            f"the model {model} on Triton takes texts, and nothing says whether its vectors get"
            " unit length: set normalize for this model to true or false"
        )
    return ModelProperties(
        kind=Kind.EMBEDDING,
        model_type="",
        poolings=(),
        normalize=overrides.normalize,
        token_dimensions=0,
        dimensions=dimensions,
        max_tokens=overrides.max_tokens or _BYTES_MAX,
        prompts=overrides.prompts,
        default_prompt_name=overrides.default_prompt_name or "",
        similarity=overrides.similarity or Similarity.COSINE,
        activation=Activation.IDENTITY,
        padding_side="right",
        pad_token_id=0,
        config={},
        folder=Path(),
        transformer_folder=Path(),
        representations=(Representation.DENSE,),
        output=output,
    )


def _check_overrides(overrides: ModelOverrides, model: str) -> None:
    nothing = ModelOverrides()
    for one in dataclasses.fields(overrides):
        if one.name not in _SETTINGS and getattr(overrides, one.name) != getattr(nothing, one.name):
            raise ModelError(
                f"the model {model} on Triton takes texts, and {one.name} cannot be set for it:"
                " what it makes of them is its own affair"
            )
    name = overrides.default_prompt_name
    if name and name not in overrides.prompts:
        raise ModelError(f"default_prompt_name {name} for {model} is none of its prompts")


def _find_output(outputs: Mapping[str, Shape], wanted: str, model: str) -> str:
    """The output of one vector for each text: by its name, or else the only one."""
    vectors = [name for name, shape in outputs.items() if len(shape) == 1]
    names = (wanted,) if wanted else (SENTENCE_EMBEDDING, *DENSE_NAMES)
    named = [name for name in names if name in vectors]
    if not named and not wanted and len(vectors) == 1:
        named = vectors
    if not named:
        raise ModelError(
            f"the model {model} on Triton takes texts, and has the outputs {', '.join(outputs)}:"
            " one must be a vector for each text, called sentence_embedding, or set output for"
            " this model in the configuration"
        )
    if named[0] == LOGITS or outputs[named[0]] == (1,):
        raise ModelError(
            f"the model {model} on Triton gives scores of single texts, and only pairs can be"
            " scored: serve a cross-encoder that takes token ids"
        )
    return named[0]
