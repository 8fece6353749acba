"""Reads how the logits of a masked-language model become a sparse vector.

Source: Formal et al., "SPLADE v2", 2021; sentence-transformers `SpladePooling`.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject


class SpladeStrategy(StrEnum):
    """How the weights of all tokens become one weight per vocabulary entry."""

    MAX = "max"
    SUM = "sum"


# How often log(1 + x) is applied to the positive part of a logit.
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}


@dataclass(frozen=True, slots=True)
class SpladePooling:
    """A SpladePooling module: from logits to one weight per vocabulary entry.

    Attributes:
        logarithms: How often log(1 + x) is applied to the positive part of a logit.
        dimensions: Entries of the vocabulary; 0 if the module does not say.
    """

    strategy: SpladeStrategy
    logarithms: int
    dimensions: int

    @classmethod
    def read(cls, path: Path, root: Path) -> "SpladePooling":
        """Read the `config.json` of a SpladePooling module in the model folder `root`.

        Raises:
            ModelError: The file is missing or wrong.
        """
        if not path.exists():
            raise ModelError(f"{path} is missing: it must say how logits become a sparse vector")
        config = JsonObject.read(path, root)
        strategy = config.text("pooling_strategy", default=SpladeStrategy.MAX)
        if strategy not in list(SpladeStrategy):
            raise config.wrong("pooling_strategy", "one of " + ", ".join(SpladeStrategy))
        activation = config.text("activation_function", default="relu")
        if activation not in _LOGARITHMS:
            raise config.wrong("activation_function", "one of " + ", ".join(_LOGARITHMS))
        return cls(
            strategy=SpladeStrategy(strategy),
            logarithms=_LOGARITHMS[activation],
            dimensions=config.count("word_embedding_dimension")
            or config.count("embedding_dimension")
            or 0,
        )
