"""Describes a model on a server that takes texts and tokenizes them itself, without any file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.onnx_outputs import Dims
from embedgrpc.models.folder.m3_names import DENSE_NAMES
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING
from embedgrpc.models.kinds import Activation, Kind, Representation, Similarity

# The default limit of a text: some 8000 tokens of English, more than most such models read. The
# model itself cuts longer texts.
_BYTES_MAX = 32_768
# The settings that need nothing but the model's vectors.
_SETTINGS = frozenset(
    {"normalize", "max_tokens", "prompts", "default_prompt_name", "similarity", "output"}
)


def describe_text_model(
    outputs: Mapping[str, Dims], overrides: ModelOverrides, *, model: str
) -> ModelProperties:
    """Return the properties of a model, from its outputs and its settings alone.

    Its tokens are bytes of UTF-8; see `Tokenizer.of_bytes`.

    Args:
        outputs: The length of each axis after the batch, by output.
        overrides: The settings of the model.
        model: The model's name on the server, for messages.

    Returns:
        A model of dense vectors; `output` names the one that holds them.

    Raises:
        ModelError: No output is a vector for each text, a required setting is missing, or a
            setting cannot apply to such a model.
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
            f"the model {model} on Triton takes texts, and it is not known whether its vectors get"
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
                " the model itself decides how it reads them"
            )
    name = overrides.default_prompt_name
    if name and name not in overrides.prompts:
        raise ModelError(f"default_prompt_name {name} for {model} is none of its prompts")


def _find_output(outputs: Mapping[str, Dims], wanted: str, model: str) -> str:
    """Return the output with one vector for each text: by its name, or the only such output."""
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
            f"the model {model} on Triton scores single texts, and only pairs can be scored: serve"
            " a cross-encoder that takes token ids"
        )
    return named[0]
