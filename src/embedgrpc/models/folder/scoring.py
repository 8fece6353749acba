"""Reads how a model scores: the similarity of its vectors, or a cross-encoder's activation."""

from collections.abc import Sequence

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.kinds import Activation, Similarity

_ACTIVATIONS = {"Sigmoid": Activation.SIGMOID, "Identity": Activation.IDENTITY}


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
    for place, key in activation_places(config, extras):
        dotted = place.text(key, default="")
        if dotted:
            activation = _ACTIVATIONS.get(dotted.rpartition(".")[2])
            if activation is None or not dotted.startswith("torch."):
                raise place.wrong(key, "torch's Sigmoid or Identity")
            return activation
    return default or Activation.SIGMOID
