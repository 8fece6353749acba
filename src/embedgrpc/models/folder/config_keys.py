"""Judges the keys of `config.json`: all that say how a graph is built, or few for an export."""

from collections.abc import Iterator

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.known_keys import BEYOND_THE_GRAPH, CROSS_ENCODER, Use, config_keys
from embedgrpc.models.folder.own_code import has_known_code
from embedgrpc.models.folder.verdict import KeyVerdict, judge

_TOKENIZER = "AutoTokenizer"


def judge_config(config: JsonObject, *, is_built: bool) -> Iterator[KeyVerdict]:
    """Yield what is done with each key.

    Args:
        config: `config.json`.
        is_built: Whether the graph is built from it. Otherwise an export contains what the model
            computes.
    """
    keys, knows_all = config_keys(config.text("model_type", default=""))
    known_code = has_known_code(config)
    for one in judge(config, keys):
        if one.key == "auto_map" and is_built and known_code:
            yield KeyVerdict(config, one.key, Use.HARMLESS)
        elif is_built:
            if knows_all or one.use is not Use.UNKNOWN:
                yield one
        elif one.key in BEYOND_THE_GRAPH or one.use is Use.HARMLESS:
            yield one
        else:
            yield KeyVerdict(config, one.key, Use.EXPORTED)
    classes = config.values.get("auto_map")
    if isinstance(classes, dict) and _TOKENIZER in classes and not is_built:
        advice = "the tokenizer has code of its own, which is not run: remove the key if it has not"
        yield KeyVerdict(config, f"auto_map.{_TOKENIZER}", Use.REFUSED, advice)
    nested = JsonObject(config.path, config.table("sentence_transformers"))
    for one in judge(nested, CROSS_ENCODER):
        yield KeyVerdict(config, f"sentence_transformers.{one.key}", one.use)
