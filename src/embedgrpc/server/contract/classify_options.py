"""Reads `ClassifyOptions`. Errors name the field."""

from typing import Final

from embedgrpc.engine.tasks.classification import Classifier, ClassifySpec
from embedgrpc.models.kinds import Activation, Truncation
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.options import read_max_tokens, read_truncation
from embedgrpc.v1 import classify_service_pb2

SCORE_FUNCTIONS: Final[dict[int, Activation]] = {
    classify_service_pb2.SCORE_FUNCTION_RAW: Activation.IDENTITY,
    classify_service_pb2.SCORE_FUNCTION_SOFTMAX: Activation.SOFTMAX,
    classify_service_pb2.SCORE_FUNCTION_SIGMOID: Activation.SIGMOID,
}


def read_classify_options(
    options: classify_service_pb2.ClassifyOptions,
    classifier: Classifier,
    *,
    are_pairs: bool,
    default_truncation: Truncation,
    field: str,
) -> ClassifySpec:
    """Return how to classify.

    Args:
        options: The request's options.
        classifier: The model.
        are_pairs: Whether the inputs are pairs of texts.
        default_truncation: Used where options do not choose one.
        field: The path of the options in the request.

    Raises:
        InvalidRequestError: A value is wrong.
    """
    check_not_negative(options.top_k, field=f"{field}.top_k")
    check_enum(classify_service_pb2.LabelOrder, options.order, field=f"{field}.order")
    check_enum(
        classify_service_pb2.ScoreFunction, options.score_function, field=f"{field}.score_function"
    )
    properties = classifier.properties
    return ClassifySpec(
        function=SCORE_FUNCTIONS.get(options.score_function, properties.score_function),
        truncation=read_truncation(
            options.truncation, default=default_truncation, field=f"{field}.truncation"
        ),
        max_tokens=read_max_tokens(
            options.max_tokens,
            limit=properties.max_tokens,
            special_tokens=classifier.special_token_count(are_pairs=are_pairs),
            field=f"{field}.max_tokens",
        ),
    )
