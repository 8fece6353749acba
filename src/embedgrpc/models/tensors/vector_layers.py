"""Reads the modules between pooling and normalisation: Dense and LayerNorm."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject

# The classes of torch.nn that the graph can compute, with their default arguments.
DENSE_ACTIVATIONS = (
    "Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "SELU", "Softplus",
    "Softsign", "Mish", "ReLU6",
)  # fmt: skip
_SENTENCE_EMBEDDING = "sentence_embedding"
_TOKEN_EMBEDDINGS = "token_embeddings"  # noqa: S105 - tokens of text, not a password


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A fully connected layer.

    Attributes:
        folder: Contains the weights.
        activation: One of `DENSE_ACTIVATIONS`.
        residual: Whether the input is added to the output, through another matrix if their sizes
            differ.

    Source: sentence-transformers `Dense`.
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that it needs."""
        shapes: dict[str, tuple[int, ...]] = {
            "linear.weight": (self.out_features, self.in_features)
        }
        if self.bias:
            shapes["linear.bias"] = (self.out_features,)
        if self.residual and self.in_features != self.out_features:
            shapes["residual.weight"] = (self.out_features, self.in_features)
        return shapes


@dataclass(frozen=True, slots=True)
class NormLayer:
    """A layer normalisation of the vector.

    Attributes:
        folder: Contains the weights.
        out_features: Equal to `in_features`.

    Source: sentence-transformers `LayerNorm`.
    """

    folder: Path
    in_features: int
    out_features: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that it needs."""
        return {"norm.weight": (self.in_features,), "norm.bias": (self.in_features,)}


VectorLayer = DenseLayer | NormLayer


def read_dense(folder: Path, root: Path, *, per_token: bool = False) -> DenseLayer:
    """Read the `config.json` of a Dense module.

    Args:
        folder: The module's folder.
        root: The model's folder.
        per_token: Whether it applies to token vectors rather than to the pooled one.

    Raises:
        ModelError: The file is missing or wrong, or contains something that is not supported.
    """
    config = _read_config(folder, root, "Dense")
    wanted = _TOKEN_EMBEDDINGS if per_token else _SENTENCE_EMBEDDING
    for key in ("module_input_name", "module_output_name"):
        if config.text(key, default=wanted) != wanted:
            raise config.wrong(key, wanted)
    return DenseLayer(
        folder=folder,
        in_features=config.size("in_features"),
        out_features=config.size("out_features"),
        bias=config.flag("bias", default=True),
        activation=_read_activation(config),
        residual=config.flag("use_residual", default=False),
    )


def read_norm(folder: Path, root: Path) -> NormLayer:
    """Read the `config.json` of a LayerNorm module in the model folder `root`.

    Raises:
        ModelError: The file is missing or wrong.
    """
    size = _read_config(folder, root, "LayerNorm").size("dimension")
    return NormLayer(folder=folder, in_features=size, out_features=size)


def _read_config(folder: Path, root: Path, module: str) -> JsonObject:
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{path} is missing: it must describe the {module} module")
    return JsonObject.read(path, root)


def _read_activation(config: JsonObject) -> str:
    # The reference uses Tanh if the key is absent, and fails for null.
    if "activation_function" not in config.values:
        return "Tanh"
    dotted = config.text("activation_function", default="")
    module, _, name = dotted.rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or name not in DENSE_ACTIVATIONS:
        raise config.wrong(
            "activation_function",
            f"torch.nn's {', '.join(DENSE_ACTIVATIONS)}, not {dotted or 'null'!r}",
        )
    return name
