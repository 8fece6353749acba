"""Reads the modules that come after pooling and change the vector: Dense and LayerNorm."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject

# Classes of torch.nn that the graph can compute, each as it is when made without arguments.
DENSE_ACTIVATIONS = (
    "Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "SELU", "Softplus",
    "Softsign", "Mish", "ReLU6",
)  # fmt: skip
_SENTENCE_EMBEDDING = "sentence_embedding"


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A fully connected layer.

    Attributes:
        folder: Where its weights are.
        in_features: Values per vector that it takes.
        out_features: Values per vector that it gives.
        bias: Whether a bias is added.
        activation: What follows, one of `DENSE_ACTIVATIONS`.
        residual: Whether what it takes is added to what it gives, through a matrix of its own
            where the two differ in length.

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
        folder: Where its weights are.
        in_features: Values per vector that it takes.
        out_features: As many.

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


def read_dense(folder: Path, root: Path, *, input_name: str = _SENTENCE_EMBEDDING) -> DenseLayer:
    """Reads the `config.json` of a Dense module.

    Args:
        folder: The module's.
        root: The model's.
        input_name: What the module must work on.

    Returns:
        The layer.

    Raises:
        ModelError: The file is missing or wrong, or asks for what is not supported.
    """
    config = _read_config(folder, root, "Dense")
    taken = config.text("module_input_name", default=_SENTENCE_EMBEDDING)
    if taken != input_name:
        raise config.wrong("module_input_name", f"{input_name} here, not {taken}")
    given = config.text("module_output_name", default=taken)
    if given != taken:
        raise config.wrong("module_output_name", f"{taken} as module_input_name is, not {given}")
    return DenseLayer(
        folder=folder,
        in_features=config.size("in_features"),
        out_features=config.size("out_features"),
        bias=config.flag("bias", default=True),
        activation=_read_activation(config),
        residual=config.flag("use_residual", default=False),
    )


def read_norm(folder: Path, root: Path) -> NormLayer:
    """Reads the `config.json` of a LayerNorm module.

    Args:
        folder: The module's.
        root: The model's.

    Raises:
        ModelError: The file is missing or wrong.
    """
    size = _read_config(folder, root, "LayerNorm").size("dimension")
    return NormLayer(folder=folder, in_features=size, out_features=size)


def _read_config(folder: Path, root: Path, module: str) -> JsonObject:
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{path} is missing: it says what the {module} module is")
    return JsonObject.read(path, root)


def _read_activation(config: JsonObject) -> str:
    # The reference takes Tanh where the key is absent, and cannot read null.
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
