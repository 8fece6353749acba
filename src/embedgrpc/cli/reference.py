"""Runs a model as sentence-transformers does, where that is installed."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from embedgrpc.cli.running import Answers, Item
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING, VOCABULARY_WEIGHTS
from embedgrpc.models.kinds import Kind, Representation
from embedgrpc.models.sources.source import ModelFiles

_PACKAGE = "sentence_transformers"
# Padding on the left moves the positions of some architectures, and changes their answers.
_BATCH = 1


def is_reference_installed() -> bool:
    """Tells whether sentence-transformers can be imported."""
    return importlib.util.find_spec(_PACKAGE) is not None


class ReferenceRunner:
    """A model in sentence-transformers, on the CPU in float32."""

    def __init__(self, files: ModelFiles, properties: ModelProperties, *, max_tokens: int) -> None:
        """Loads the model.

        Args:
            files: The model. Of a repository the library brings the files that it needs itself.
            properties: What the model is.
            max_tokens: Where texts are to be cut, at most the model's own limit.

        Raises:
            ModelError: The library cannot load it.
        """
        self.name = f"sentence-transformers {version('sentence-transformers')}"
        # Late: it brings PyTorch, and may not be installed.
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
        except Exception as error:  # whatever the library, PyTorch and the files give
            reason = next(iter(str(error).splitlines()), "")
            raise ModelError(
                f"{self.name} cannot load {files.source!r}: {type(error).__name__}: {reason}"
            ) from error
        if max_tokens < properties.max_tokens:
            setattr(self._model, "max_length" if self._crosses else "max_seq_length", max_tokens)

    def run(self, items: Sequence[Item]) -> Answers:
        """Answers each item; scores are taken before the activation."""
        options: dict[str, Any] = {"batch_size": _BATCH, "show_progress_bar": False}
        if self._crosses:
            import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - it comes with the library

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
