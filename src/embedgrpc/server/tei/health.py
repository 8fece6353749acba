"""Which services of tei.v1 a model can serve."""

from collections.abc import Sequence

from embedgrpc.server.services.health import FacadeHealth


def health_of(model: str) -> Sequence[FacadeHealth]:
    """Return when each service is healthy."""
    return (
        FacadeHealth("tei.v1.Info", model, lambda _: True),
        FacadeHealth("tei.v1.Embed", model, lambda loaded: loaded.embedder is not None),
        FacadeHealth("tei.v1.Predict", model, lambda loaded: loaded.classifier is not None),
        FacadeHealth("tei.v1.Rerank", model, lambda loaded: loaded.reranker is not None),
        FacadeHealth("tei.v1.Tokenize", model, lambda loaded: loaded.has_tokenizer),
    )
