from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.kinds import Pooling, Similarity, WeightType
from embedgrpc.models.remote.text_model import describe_text_model

OUTPUTS: dict[str, tuple[int | None, ...]] = {"sentence_embedding": (4,)}


def describe(**settings: Any) -> Any:
    """Describe a model with one output of vectors."""
    settings = {"normalize": True} | settings
    return describe_text_model(OUTPUTS, ModelOverrides(**settings), model="m")


def test_defaults() -> None:
    """Without further settings a text may have 32 KiB, and vectors are compared by cosine."""
    properties = describe()
    assert (properties.dimensions, properties.output) == (4, "sentence_embedding")
    assert (properties.max_tokens, properties.similarity) == (32_768, Similarity.COSINE)
    assert properties.normalize
    assert properties.prompts == {}


def test_settings_of_the_model() -> None:
    """Limit, prompts, default prompt and similarity come from the settings."""
    properties = describe(
        normalize=False,
        max_tokens=100,
        prompts={"query": "q: "},
        default_prompt_name="query",
        similarity=Similarity.DOT,
    )
    assert (properties.max_tokens, properties.similarity) == (100, Similarity.DOT)
    assert (properties.prompts, properties.default_prompt_name) == ({"query": "q: "}, "query")
    assert not properties.normalize


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_type": WeightType.INT8}, "weight_type cannot be set"),
        ({"pooling": (Pooling.CLS,)}, "pooling cannot be set"),
        ({"normalize": None}, "set normalize for this model"),
        ({"default_prompt_name": "query"}, "default_prompt_name query for m is none of its"),
    ],
)
def test_settings_that_cannot_apply(settings: dict[str, Any], message: str) -> None:
    """A setting for a tokenizer or a graph is refused, and `normalize` is required."""
    with pytest.raises(ModelError, match=message):
        describe(**settings)
