"""Reads the labels of a classifier."""

from embedgrpc.models.files.json_file import JsonObject

# The end of the names of architectures with a head that classifies.
_CLASSIFIER = "ForSequenceClassification"
# The labels of a classifier whose configuration names none. Source: `PreTrainedConfig` of
# transformers, which does not write the map of two labels with default names.
_DEFAULT_COUNT = 2


def has_labels(config: JsonObject) -> bool:
    """Return whether a model has a head that classifies."""
    architectures = config.values.get("architectures") or []
    return any(str(name).endswith(_CLASSIFIER) for name in architectures)


def read_labels(config: JsonObject) -> tuple[str, ...]:
    """Return the labels of a model that classifies, in the order of its logits.

    Args:
        config: `config.json`. As in the reference, `num_labels` only counts without `id2label`.

    Raises:
        ModelError: There are none, or they are not numbered from 0.
    """
    count = config.count("num_labels")
    named = config.table("id2label")
    if config.values.get("id2label") is None:
        if count == 0:
            raise config.wrong("num_labels", "a whole number of at least 1")
        return tuple(f"LABEL_{index}" for index in range(count or _DEFAULT_COUNT))
    labels = [named.get(str(index)) for index in range(len(named))]
    texts = tuple(label for label in labels if isinstance(label, str))
    if not texts or len(texts) != len(labels):
        raise config.wrong("id2label", "texts by number, from 0 without a gap")
    return texts
