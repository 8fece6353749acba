"""MTEB: an encoder and a cross-encoder that it evaluates."""

import logging
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import get_prompt_name
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from embedgrpc.client.integrations.sentence_transformers import (
    EmbedGrpcCrossEncoder,
    EmbedGrpcSentenceTransformer,
    ServedModel,
    to_tensor,
)

_logger = logging.getLogger(__name__)

_SIMILARITIES: Final = {
    "cosine": ScoringFunction.COSINE,
    "dot": ScoringFunction.DOT_PRODUCT,
    "euclidean": ScoringFunction.EUCLIDEAN,
    "manhattan": ScoringFunction.MANHATTAN,
}


class EmbedGrpcMtebEncoder(EmbedGrpcSentenceTransformer):
    """A served model that MTEB evaluates as it evaluates a SentenceTransformer.

    Prompts of the model are chosen as MTEB chooses them: for the task, the type of the task, and
    the role of the texts. A blank text, which the server refuses and some data sets have, gets a
    vector of zeros. MTEB keeps results under the fingerprint of the model as its revision.

    Arguments and errors are those of `ServedModel`.
    """

    # The texts of MTEB come in batches, with their task.
    def encode(self, inputs: Any, *args: Any, task_metadata: Any = None, **options: Any) -> Any:
        """Embed the texts of a task, or texts as a SentenceTransformer does.

        Args:
            inputs: Batches {"text": [...]} of a task; otherwise the texts, or one str.
            args: Arguments of a SentenceTransformer.
            task_metadata: The task, if there is one.
            options: Arguments of MTEB's `EncoderProtocol.encode`, or of a SentenceTransformer.

        Returns:
            float32 [texts, dimensions].

        Raises:
            EncodeError: Texts failed; the error has the vectors of the others.
            EmbedGrpcError: The call failed.
        """
        if task_metadata is None:
            return super().encode(inputs, *args, **options)
        prompt_type = options.pop("prompt_type", None)
        for name in ("hf_split", "hf_subset", "batch_size"):
            options.pop(name, None)
        prompt_name = get_prompt_name(self.prompts, task_metadata, prompt_type)
        texts = _texts(inputs)
        given = [text for text in texts if text.strip()]
        if prompt_name is None and prompt_type is not None:
            encode = self.encode_query if prompt_type.value == "query" else self.encode_document
            vectors = encode(given, **options)
        else:
            vectors = super().encode(given, prompt_name, **options)
        return vectors if len(given) == len(texts) else _with_zeros(texts, vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare every vector of one array with every vector of another: a tensor [n, m]."""
        return to_tensor(super().similarity(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare the vectors of two arrays one by one: a tensor [n]."""
        return to_tensor(super().similarity_pairwise(embeddings1, embeddings2))

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes down about the model."""
        described = self.description
        return _meta(
            self,
            embed_dim=self.get_embedding_dimension(),
            similarity_fn_name=_SIMILARITIES.get(described.similarity),
        )


class EmbedGrpcMtebCrossEncoder(EmbedGrpcCrossEncoder):
    """A served model that MTEB evaluates as it evaluates a CrossEncoder.

    A pair with a blank text, which the server refuses and some data sets have, gets the lowest
    score of all pairs. Arguments and errors are those of `ServedModel`.
    """

    # The texts of MTEB come in batches, with their task.
    def predict(  # type: ignore[override]
        self, inputs1: Any, inputs2: Any = None, *, task_metadata: Any = None, **options: Any
    ) -> Any:
        """Score the pairs of a task, or pairs as a CrossEncoder does.

        Args:
            inputs1: Batches {"text": [...]} of queries; otherwise pairs, or one pair.
            inputs2: Batches of as many documents.
            task_metadata: The task, if there is one.
            options: Arguments of MTEB's `CrossEncoderProtocol.predict`, or of a CrossEncoder.

        Returns:
            float32 [pairs].

        Raises:
            EmbedGrpcError: The call failed, or a pair did.
        """
        if task_metadata is None:
            return super().predict(inputs1, **options)
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        is_given = np.array([all(text.strip() for text in pair) for pair in pairs], np.bool_)
        found = self._score(
            [pair for pair, given in zip(pairs, is_given, strict=True) if given], None
        )
        if len(found) == len(pairs):
            return found
        _logger.warning("%d of %d pairs have a blank text", len(pairs) - len(found), len(pairs))
        scores = np.full(len(pairs), found.min(initial=0), np.float32)
        scores[is_given] = found
        return scores

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes down about the model."""
        return _meta(self, model_type=["cross-encoder"])


def _meta(model: ServedModel, **more: Any) -> ModelMeta:
    described = model.description
    name = described.id
    return ModelMeta.create_empty(
        {
            # MTEB has an owner in every name.
            "name": name if "/" in name else f"embedgrpc/{name}",
            "revision": described.fingerprint,
            "max_tokens": described.max_tokens,
            "modalities": ["text"],
            **more,
        }
    )


def _texts(batches: Iterable[Any]) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


def _with_zeros(texts: list[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors with a row of zeros for each blank text."""
    is_given = np.array([bool(text.strip()) for text in texts])
    _logger.warning("%d of %d texts are blank and get zeros", (~is_given).sum(), len(texts))
    rows = np.zeros((len(texts), vectors.shape[1]), vectors.dtype)
    rows[is_given] = vectors
    return rows
