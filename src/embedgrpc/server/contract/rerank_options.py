"""Reads how documents are to be ranked; each check names its field."""

from embedgrpc.engine.errors import UnsupportedError
from embedgrpc.engine.tasks.reranking import RerankSpec, ScoreScale
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Kind, Truncation
from embedgrpc.server.contract.field_checks import check_enum, check_not_negative
from embedgrpc.server.contract.limits import PROMPT_CHARACTERS_MAX
from embedgrpc.server.contract.options import (
    check_characters,
    instruction_prompt,
    prompt_for,
    read_max_tokens,
    read_prompt,
    read_task,
    read_truncation,
)
from embedgrpc.v1 import common_pb2, rerank_service_pb2

_SCALES: dict[int, ScoreScale] = {
    rerank_service_pb2.SCORE_SCALE_UNSPECIFIED: ScoreScale.MODEL,
    rerank_service_pb2.SCORE_SCALE_RAW: ScoreScale.RAW,
    rerank_service_pb2.SCORE_SCALE_SIGMOID: ScoreScale.SIGMOID,
}


def read_rerank_options(
    options: rerank_service_pb2.RerankOptions,
    properties: ModelProperties,
    *,
    default_truncation: Truncation,
    special_tokens: int,
    renders_instruction: bool = False,
    field: str,
) -> RerankSpec:
    """Read how documents are to be ranked.

    Args:
        options: The options.
        properties: What the model is.
        default_truncation: Used where options do not choose one.
        special_tokens: Special tokens of a document: 0 for a cross-encoder, where those of the
            pair do not count towards the document.
        renders_instruction: Whether the model's chat template has a place for an instruction.
        field: Where the options stand in the request.

    Raises:
        InvalidRequestError: A value is wrong for every model.
        UnsupportedError: This model lacks what is asked for.
    """
    check_not_negative(options.top_n, field=f"{field}.top_n")
    check_enum(rerank_service_pb2.ScoreScale, options.score_scale, field=f"{field}.score_scale")
    scale = _SCALES[options.score_scale]
    embeds = properties.kind is Kind.EMBEDDING
    if embeds and scale is ScoreScale.SIGMOID:
        raise UnsupportedError(
            "the model scores by similarity, which has no sigmoid", field=f"{field}.score_scale"
        )
    max_tokens = 0
    if options.max_tokens:
        max_tokens = read_max_tokens(
            options.max_tokens,
            limit=properties.max_tokens,
            special_tokens=special_tokens,
            field=f"{field}.max_tokens",
        )
    # The reference puts a cross-encoder's default prompt in front of the query, and no other.
    default = properties.prompts.get(properties.default_prompt_name, "")
    return RerankSpec(
        scale=scale,
        truncation=read_truncation(
            options.truncation, default=default_truncation, field=f"{field}.truncation"
        ),
        max_tokens=max_tokens,
        query_prompt=_read_query_prompt(
            options,
            properties,
            renders_instruction=renders_instruction,
            field=field,
            default=prompt_for(common_pb2.INPUT_TYPE_QUERY, properties) if embeds else default,
        ),
        document_prompt=read_prompt(
            options,
            properties,
            field=field,
            of="document_",
            default=prompt_for(common_pb2.INPUT_TYPE_DOCUMENT, properties) if embeds else "",
        ),
        tasks=(
            read_task(
                options, properties, field=field, of="query_", default=common_pb2.INPUT_TYPE_QUERY
            ),
            read_task(
                options,
                properties,
                field=field,
                of="document_",
                default=common_pb2.INPUT_TYPE_DOCUMENT,
            ),
        ),
    )


def _read_query_prompt(
    options: rerank_service_pb2.RerankOptions,
    properties: ModelProperties,
    *,
    renders_instruction: bool,
    field: str,
    default: str,
) -> str:
    if options.WhichOneof("query_prompt") != "instruction":
        return read_prompt(options, properties, field=field, of="query_", default=default)
    place = f"{field}.instruction"
    # Read once: it may be megabytes.
    instruction = options.instruction
    check_characters(instruction, limit=PROMPT_CHARACTERS_MAX, field=place)
    if renders_instruction:
        return instruction
    prompt = instruction_prompt(instruction, properties)
    if prompt is None:
        raise UnsupportedError("the model takes no instruction", field=place)
    return prompt
