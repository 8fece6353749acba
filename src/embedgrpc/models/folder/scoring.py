"""Reads how a model scores: by the similarity of vectors, or by a function of its logits."""

from collections.abc import Mapping, Sequence

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.kinds import Activation, Similarity

_ACTIVATIONS = {"Sigmoid": Activation.SIGMOID, "Identity": Activation.IDENTITY}
_CROSS_ENCODER = "CrossEncoder"


def read_similarity(extras: JsonObject, *, default: Similarity) -> Similarity:
    """Return how two vectors of the model are meant to be compared.

    Raises:
        ModelError: The similarity is not supported.
    """
    name = extras.text("similarity_fn_name", default=default)
    try:
        return Similarity(name)
    except ValueError:
        raise extras.wrong("similarity_fn_name", "one of " + ", ".join(Similarity)) from None


def activation_places(config: JsonObject, extras: JsonObject) -> Sequence[tuple[JsonObject, str]]:
    """Return the files and keys that may name an activation, in the reference's order."""
    nested = JsonObject(path=config.path, values=config.table("sentence_transformers"))
    return (
        (extras, "activation_fn"),
        (nested, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    )


def read_activation(
    config: JsonObject, extras: JsonObject, *, default: Activation | None
) -> Activation:
    """Return what turns a logit into a score.

    Args:
        config: `config.json`.
        extras: `config_sentence_transformers.json`.
        default: The activation if no file says; None for the sigmoid.

    Raises:
        ModelError: The activation is not supported.
    """
    return _read_named(config, extras, _ACTIVATIONS) or default or Activation.SIGMOID


def read_score_function(config: JsonObject, extras: JsonObject, *, label_count: int) -> Activation:
    """Return what turns logits into the scores of labels.

    Args:
        config: `config.json`.
        extras: `config_sentence_transformers.json`.
        label_count: The number of labels.

    Raises:
        ModelError: The activation or the type of the problem is not supported.

    Source: `CrossEncoder` of sentence-transformers for a model that it saved, or that names an
    activation; else the text-classification pipeline of transformers.
    """
    several = label_count > 1
    known = _ACTIVATIONS | {"Softmax": Activation.SOFTMAX} if several else _ACTIVATIONS
    named = _read_named(config, extras, known)
    if named:
        return named
    if extras.text("model_type", default="") == _CROSS_ENCODER:
        return Activation.IDENTITY if several else Activation.SIGMOID
    match config.text("problem_type", default=""):
        case "regression":
            return Activation.IDENTITY
        case "multi_label_classification":
            return Activation.SIGMOID
        case "" | "single_label_classification":
            return Activation.SOFTMAX if several else Activation.SIGMOID
    raise config.wrong(
        "problem_type", "regression, single_label_classification or multi_label_classification"
    )


def _read_named(
    config: JsonObject, extras: JsonObject, known: Mapping[str, Activation]
) -> Activation | None:
    for place, key in activation_places(config, extras):
        dotted = place.text(key, default="")
        if dotted:
            activation = known.get(dotted.rpartition(".")[2])
            if activation is None or not dotted.startswith("torch."):
                *names, last = known
                raise place.wrong(key, f"torch's {', '.join(names)} or {last}")
            return activation
    return None
