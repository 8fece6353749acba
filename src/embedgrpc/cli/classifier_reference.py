"""Run a classifier with transformers, if that is installed."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from embedgrpc.cli.runners import Item, ModelOutputs
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import LOGITS
from embedgrpc.models.sources.source import ModelFiles


class ClassifierReference:
    """A classifier in transformers, on the CPU in float32.

    sentence-transformers reads no single texts with a classifier.
    """

    package = "transformers"

    def __init__(self, files: ModelFiles, properties: ModelProperties, *, max_tokens: int) -> None:
        """Load the model; see `find_reference`."""
        del properties
        self.name = f"transformers {version('transformers')}"
        self._max_tokens = max_tokens
        # Late, because it loads PyTorch and may not be installed.
        import transformers as library  # type: ignore[import-not-found]  # noqa: PLC0415 - see above

        place, revision = place_of(files)
        try:
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(place, revision=revision)
            self._model: Any = library.AutoModelForSequenceClassification.from_pretrained(
                place, revision=revision, dtype="float32"
            )
        except Exception as error:  # the library, PyTorch or the files may raise anything
            raise cannot_load(self.name, files, error) from error

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each text or pair alone; return its logits."""
        import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - installed with the library

        rows = []
        with torch.inference_mode():
            for item in items:
                texts = (item,) if isinstance(item, str) else item
                features = self._tokenizer(
                    *texts, truncation=True, max_length=self._max_tokens, return_tensors="pt"
                )
                logits = self._model(**features).logits
                rows.append(np.asarray(logits[0].float(), np.float32))
        return {LOGITS: rows}


def place_of(files: ModelFiles) -> tuple[str, str | None]:
    """Return the name or the folder by which a library loads a model, and the revision."""
    repository = files.repository
    return (repository.name, files.revision) if repository else (str(files.folder), None)


def cannot_load(name: str, files: ModelFiles, error: Exception) -> ModelError:
    """Return the error for a model that a library cannot load."""
    reason = next(iter(str(error).splitlines()), "")
    return ModelError(f"{name} cannot load {files.source!r}: {type(error).__name__}: {reason}")
