"""Run a model with sentence-transformers, if that is installed."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from embedgrpc.cli.runners import Item, ModelOutputs
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING, VOCABULARY_WEIGHTS
from embedgrpc.models.kinds import Kind, Representation
from embedgrpc.models.sources.source import ModelFiles

_PACKAGE = "sentence_transformers"
# One text a batch: padding on the left shifts the positions of some architectures, which changes
# their results.
_BATCH = 1


def is_reference_installed() -> bool:
    """Return whether sentence-transformers is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


class ReferenceRunner:
    """A model in sentence-transformers, on the CPU in float32."""

    def __init__(self, files: ModelFiles, properties: ModelProperties, *, max_tokens: int) -> None:
        """Load the model.

        Args:
            files: The model. The library itself downloads the files of a Hub repository.
            properties: The model's properties.
            max_tokens: The length to truncate texts to, at most the model's own limit.

        Raises:
            ModelError: The library cannot load the model.
        """
        self.name = f"sentence-transformers {version('sentence-transformers')}"
        # Late, because it loads PyTorch and may not be installed.
        import sentence_transformers as library  # type: ignore[import-not-found]  # noqa: PLC0415 - see above

        self._crosses = properties.kind is Kind.CROSS_ENCODER
        self._is_sparse = Representation.DENSE not in properties.representations
        kinds = ("CrossEncoder", "SparseEncoder", "SentenceTransformer")
        kind = kinds[0 if self._crosses else 1 if self._is_sparse else 2]
        repository = files.repository
        try:
            self._model: Any = getattr(library, kind)(
                repository.name if repository else str(files.folder),
                revision=files.revision if repository else None,
                device="cpu",
                model_kwargs={"torch_dtype": "float32"},
            )
        except Exception as error:  # the library, PyTorch or the files may raise anything
            reason = next(iter(str(error).splitlines()), "")
            raise ModelError(
                f"{self.name} cannot load {files.source!r}: {type(error).__name__}: {reason}"
            ) from error
        if max_tokens < properties.max_tokens:
            setattr(self._model, "max_length" if self._crosses else "max_seq_length", max_tokens)

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item; scores are returned before the activation."""
        options: dict[str, Any] = {"batch_size": _BATCH, "show_progress_bar": False}
        if self._crosses:
            import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - installed with the library

            scores = self._model.predict(
                list(items), activation_fn=torch.nn.Identity(), convert_to_numpy=True, **options
            )
            return {LOGITS: list(np.asarray(scores, np.float32).reshape(len(items), -1))}
        if self._is_sparse:
            vectors = self._model.encode(
                list(items), convert_to_tensor=True, convert_to_sparse_tensor=False, **options
            )
            return {VOCABULARY_WEIGHTS: list(np.asarray(vectors.cpu(), np.float32))}
        vectors = self._model.encode(list(items), convert_to_numpy=True, **options)
        return {SENTENCE_EMBEDDING: list(np.asarray(vectors, np.float32))}
