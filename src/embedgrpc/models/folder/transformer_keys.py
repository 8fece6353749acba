"""Judges the keys of the Transformer's file, and reads the arguments in it that win."""

from collections.abc import Iterator

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.known_keys import (
    LOADER_ARGUMENTS,
    NESTED_ADVICE,
    PROCESSING,
    TEMPLATE_VARIABLES,
    TRANSFORMER,
    Keys,
    Use,
)
from embedgrpc.models.folder.verdict import KeyVerdict, judge

# The keys that hold arguments of the library's loader.
_ARGUMENTS = (
    "tokenizer_args", "processor_kwargs", "model_args", "model_kwargs", "config_args",
    "config_kwargs",
)  # fmt: skip
_TOKENIZER_ARGUMENTS = _ARGUMENTS[:2]
_PROCESSING = "processing_kwargs"
# For each task, the output that is used of the backbone, and the name that it gets.
# Source: `TRANSFORMER_TASK_DEFAULTS` of sentence-transformers.
_OUTPUTS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "fill-mask": ("logits", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
    "text-generation": ("logits", "causal_logits"),
}
# A conversation is text, once its template is rendered. Other modalities, such as images, have no
# place in a request.
_MODALITIES = ("text", "message")


def judge_transformer(config: JsonObject, keys: Keys = TRANSFORMER) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of the Transformer's file, and with nested arguments."""
    yield from judge(config, keys)
    task = config.text("transformer_task", default="feature-extraction")
    if task in _OUTPUTS:
        yield from _judge_outputs(config, *_OUTPUTS[task])
    else:
        known = ", ".join(sorted(_OUTPUTS))
        yield KeyVerdict(
            config, "transformer_task", Use.REFUSED, f"it is {task}, not one of {known}"
        )
    for key in _ARGUMENTS:
        nested = JsonObject(config.path, config.table(key))
        for one in judge(nested, LOADER_ARGUMENTS):
            use, followed = one.use, key in _TOKENIZER_ARGUMENTS
            if use is Use.FOLLOWED and not followed:
                use = Use.UNKNOWN
            yield KeyVerdict(config, f"{key}.{one.key}", use, NESTED_ADVICE)
    yield from _judge_processing(config)


def merge_arguments(tokenizer_config: JsonObject, settings: JsonObject) -> JsonObject:
    """Return `tokenizer_config.json` with the arguments in the Transformer's file that win."""
    arguments = read_arguments(settings).values
    followed = {key: arguments[key] for key in LOADER_ARGUMENTS.followed & arguments.keys()}
    return JsonObject(tokenizer_config.path, {**tokenizer_config.values, **followed})


def read_arguments(settings: JsonObject) -> JsonObject:
    """Return the arguments of the tokenizer's loader in the Transformer's file.

    Raises:
        ModelError: They are no object.
    """
    # The older name replaces the newer one.
    key = next((key for key in _TOKENIZER_ARGUMENTS if key in settings.values), "")
    return JsonObject(settings.path, settings.table(key))


def _judge_processing(config: JsonObject) -> Iterator[KeyVerdict]:
    """Yield what is done with the arguments that the reference renders and tokenizes with."""
    groups = JsonObject(config.path, config.table(_PROCESSING))
    for group in groups.values:
        keys = PROCESSING.get(group, Keys(followed=frozenset()))
        for name, value in groups.table(group).items():
            use = keys.use_of(name)
            if use is Use.UNKNOWN:
                use = Use.FOLLOWED if group == TEMPLATE_VARIABLES else Use.REFUSED
            if name == "restore_suffix" and value is not True:
                use = Use.REFUSED
            advice = keys.refused.get(name, "remove it")
            yield KeyVerdict(config, f"{_PROCESSING}.{group}.{name}", use, advice)


def _judge_outputs(config: JsonObject, method_output: str, output: str) -> Iterator[KeyVerdict]:
    """Yield what refuses another output of the backbone than that of the task."""
    key = "module_output_name"
    if config.text(key, default=output) != output:
        yield KeyVerdict(config, key, Use.REFUSED, f"it must be {output} for this task")
    modalities = config.table("modality_config")
    if modalities and "text" not in modalities:
        yield KeyVerdict(config, "modality_config", Use.REFUSED, "the model takes no text")
    for name in _MODALITIES:
        described = JsonObject(config.path, modalities).table(name)
        wanted = {"method": ("forward",), "method_output_name": (method_output, [method_output])}
        for part, values in wanted.items():
            if described and described.get(part) not in values:
                place = f"modality_config.{name}.{part}"
                yield KeyVerdict(config, place, Use.REFUSED, f"it must be {values[0]}")
