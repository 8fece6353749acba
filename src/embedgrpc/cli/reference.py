"""Run a model with its reference library, if that is installed."""

import importlib.util
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from embedgrpc.cli.classifier_reference import ClassifierReference, cannot_load, place_of
from embedgrpc.cli.runners import Item, ModelOutputs, Runner
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import (
    LOGITS,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Kind, Representation, TextRole
from embedgrpc.models.sources.source import ModelFiles

# One text a batch: padding on the left shifts the positions of some architectures, which changes
# their results.
_BATCH = 1


def find_reference(
    files: ModelFiles,
    properties: ModelProperties,
    *,
    max_tokens: int,
    passed: "PassedRoute | None" = None,
) -> Runner | None:
    """Return the model in its reference library; None if that is not installed.

    Args:
        files: The model. The library itself downloads the files of a Hub repository.
        properties: The model's properties.
        max_tokens: The length to truncate texts to, at most the model's own limit.
        passed: The route that the texts pass, of a model with routes.

    Raises:
        ModelError: The library cannot load the model.
    """
    if passed is not None:
        if importlib.util.find_spec(ReferenceRunner.package) is None:
            return None
        return ReferenceRunner(files, properties, max_tokens=max_tokens, passed=passed)
    runner: type[
        Model2VecRunner | ClassifierReference | LateInteractionRunner | ReferenceRunner
    ] = ReferenceRunner
    if properties.table is not None and properties.table.of_model2vec:
        runner = Model2VecRunner
    elif properties.kind is Kind.CLASSIFIER:
        runner = ClassifierReference
    elif properties.late_interaction is not None:
        runner = LateInteractionRunner
    if importlib.util.find_spec(runner.package) is None:
        return None
    return runner(files, properties, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class PassedRoute:
    """The route of a model that texts pass.

    Attributes:
        name: Its name.
        role: The role of the texts; None for no role.
        prompt: What is put in front of each text.
    """

    name: str
    role: TextRole | None
    prompt: str


class Model2VecRunner:
    """A model in model2vec, which reads its own folders differently from sentence-transformers."""

    package = "model2vec"

    def __init__(self, files: ModelFiles, properties: ModelProperties, *, max_tokens: int) -> None:
        """Load the model; see `find_reference`."""
        self.name = f"model2vec {version('model2vec')}"
        # Late, because it may not be installed.
        import model2vec  # type: ignore[import-not-found]  # noqa: PLC0415 - see above

        del properties
        self._max_tokens = max_tokens
        try:
            self._model: Any = model2vec.StaticModel.from_pretrained(str(files.folder))
        except Exception as error:  # the library or the files may raise anything
            raise cannot_load(self.name, files, error) from error

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item."""
        vectors = self._model.encode(list(items), max_length=self._max_tokens)
        return {SENTENCE_EMBEDDING: list(np.asarray(vectors, np.float32))}


class LateInteractionRunner:
    """A model of late interaction in sentence-transformers, on the CPU in float32."""

    package = "sentence_transformers"

    def __init__(self, files: ModelFiles, properties: ModelProperties, *, max_tokens: int) -> None:
        """Load the model; see `find_reference`."""
        self.name = f"sentence-transformers {version('sentence-transformers')}"
        # Late, because it loads PyTorch and may not be installed.
        import sentence_transformers as library  # type: ignore[import-not-found]  # noqa: PLC0415 - see above

        place, revision = place_of(files)
        try:
            self._model: Any = library.MultiVectorEncoder(
                place,
                revision=revision,
                device="cpu",
                model_kwargs={"torch_dtype": "float32"},
            )
        except Exception as error:  # the library, PyTorch or the files may raise anything
            raise cannot_load(self.name, files, error) from error
        if max_tokens < properties.max_tokens:
            self._model[0].document_length = max_tokens

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item as a document, and then each as a query."""
        options: dict[str, Any] = {
            "batch_size": _BATCH,
            "show_progress_bar": False,
            "convert_to_numpy": True,
        }
        rows = self._model.encode_document(list(items), **options)
        rows += self._model.encode_query(list(items), **options)
        return {TOKEN_EMBEDDINGS: [np.asarray(one, np.float32) for one in rows]}


class ReferenceRunner:
    """A model in sentence-transformers, on the CPU in float32."""

    package = "sentence_transformers"

    def __init__(
        self,
        files: ModelFiles,
        properties: ModelProperties,
        *,
        max_tokens: int,
        passed: PassedRoute | None = None,
    ) -> None:
        """Load the model; see `find_reference`."""
        self.name = f"sentence-transformers {version('sentence-transformers')}"
        # Late, because it loads PyTorch and may not be installed.
        import sentence_transformers as library  # noqa: PLC0415 - see above

        self._crosses = properties.kind is Kind.CROSS_ENCODER
        self._is_sparse = Representation.DENSE not in properties.representations
        kinds = ("CrossEncoder", "SparseEncoder", "SentenceTransformer")
        kind = kinds[0 if self._crosses else 1 if self._is_sparse else 2]
        place, revision = place_of(files)
        listed = properties.weight_table
        try:
            # The library looks where it runs for the weights of tokens that a JSON file lists.
            with chdir(listed.folder if listed else files.folder):
                self._model: Any = getattr(library, kind)(
                    place,
                    revision=revision,
                    device="cpu",
                    model_kwargs={"torch_dtype": "float32"},
                )
        except Exception as error:  # the library, PyTorch or the files may raise anything
            raise cannot_load(self.name, files, error) from error
        self._options: dict[str, Any] = {"batch_size": _BATCH, "show_progress_bar": False}
        first: Any = self._model if self._crosses else None
        if passed is not None:
            self._options |= {"task": passed.role, "prompt": passed.prompt}
            first = _first_module(self._model, passed.name)
        elif properties.table is not None or properties.weight_table is not None:
            first = self._model[0]
        if properties.table is not None:
            if max_tokens < properties.max_tokens:
                first.tokenizer.enable_truncation(max_tokens)
        elif properties.weight_table is not None:
            # The library follows the tokenizer's limit alone.
            first.tokenizer.model_max_length = max_tokens
        elif max_tokens < properties.max_tokens:
            name = "max_length" if self._crosses else "max_seq_length"
            setattr(first or self._model, name, max_tokens)

    def run(self, items: Sequence[Item]) -> ModelOutputs:
        """Run each item; scores are returned before the activation."""
        options = self._options
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


def _first_module(model: Any, route: str) -> Any:
    """Return the module that reads the texts of a route."""
    first = model[0]
    while (routes := getattr(first, "sub_modules", None)) is not None:
        # With several routers, a route has the names that each of them gives it.
        name = next(name for name in routes if route == name or route.startswith(f"{name}/"))
        first, route = routes[name][0], route.removeprefix(f"{name}/")
    return first
