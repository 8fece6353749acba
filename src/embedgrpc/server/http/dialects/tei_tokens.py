"""Tokens in the HTTP API of text-embeddings-inference."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

from embedgrpc.engine.errors import DeadlineExpiredError, InvalidRequestError
from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.models.tokenizers.tokenized_text import TokenizedText
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.contract.options import read_prompt
from embedgrpc.server.contract.response_sizes import check_response_size
from embedgrpc.server.http.dialects.answers import SimpleToken
from embedgrpc.server.http.dialects.tei import TAG, default_model, tei_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import PromptName, TextOrTexts, about
from embedgrpc.server.http.rows import json_list
from embedgrpc.server.services.tokenizer import FEW_BYTES, FEW_TOKENS
from embedgrpc.server.tei.rules import tokens_of
from embedgrpc.server.telemetry.call_record import note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import tokenizer_service_pb2

# The keys and numbers of a token, beside its text.
_TOKEN_BYTES = 96
# No vocabulary makes more bytes of a token.
_TOKEN_TEXT_BYTES = 64
# Tokenizers have no others.
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class TokenizeRequest(msgspec.Struct):
    """The body of POST /tokenize."""

    inputs: TextOrTexts
    add_special_tokens: Annotated[
        bool | None, about("Whether the model's special tokens are among them.", default=True)
    ] = None
    prompt_name: PromptName = None


class DecodeRequest(msgspec.Struct):
    """The body of POST /decode: one list of ids, or several."""

    ids: Annotated[
        list[TokenId | list[TokenId]], about("The ids of a text, or a list of such lists.")
    ]
    skip_special_tokens: Annotated[
        bool | None, about("Whether special tokens are left out.", default=True)
    ] = None


async def tokenize(exchange: Exchange) -> Answer:
    """Return the tokens of each text, with their places in UTF-8.

    Places are those in the text with its prompt. Special tokens have none.

    Raises:
        EngineError: A text cannot be tokenized.
    """
    body: TokenizeRequest = exchange.body
    call = exchange.begin()
    settings = exchange.served.settings
    served = exchange.find_model(None, default=default_model(exchange))
    loaded = served.ready()
    given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    note_inputs(len(given))
    check_count(len(given), limit=settings.max_inputs, field="inputs")
    options = tokenizer_service_pb2.TokenizeOptions()
    if body.prompt_name is not None:
        options.prompt_name = body.prompt_name
    prompt = read_prompt(options, loaded.properties, field="options")
    limit = settings.max_response_bytes
    texts = [prompt + one for one in given]
    tokenizer = loaded.text_tokenizer
    tokenized = await tokenizer.tokenize(
        texts, call, prompt="", with_special=body.add_special_tokens is not False
    )
    tokens = sum(len(one.ids) for one in tokenized)
    describe_call(
        operation="tokenize",
        request_model=served.id,
        response_model=served.id,
        input_tokens=tokens,
    )
    size = tokens * _TOKEN_BYTES + exchange.size_bytes
    check_response_size(size, limit=limit)
    await reserve_response(size)

    def pack() -> bytes:
        return b"[%s]" % b",".join(
            _pack(text, one, tokenizer) for text, one in zip(texts, tokenized, strict=True)
        )

    few = tokens <= FEW_TOKENS and exchange.size_bytes <= FEW_BYTES
    packed = pack() if few else await asyncio.to_thread(pack)
    check_response_size(len(packed), limit=limit)
    return Answer(packed)


def _pack(text: str, tokenized: TokenizedText, tokenizer: TextTokenizer) -> bytes:
    """Return the tokens of a text as JSON."""
    tokens = [SimpleToken(**one._asdict()) for one in tokens_of(text, tokenized, tokenizer)]
    return msgspec.json.encode(tokens)


async def decode(exchange: Exchange) -> Answer:
    """Return the text of each list of ids.

    Raises:
        EngineError: The vocabulary lacks an id, or there are too many.
    """
    body: DecodeRequest = exchange.body
    settings = exchange.served.settings
    served = exchange.find_model(None, default=default_model(exchange))
    tokenizer = served.ready().text_tokenizer
    lists, is_batch = _read_ids(body.ids)
    note_inputs(len(lists))
    check_count(len(lists), limit=settings.max_inputs, field="ids")
    limit = settings.max_response_bytes
    await reserve_response(min(sum(map(len, lists)) * _TOKEN_TEXT_BYTES, limit))
    texts: list[str] = []
    call = exchange.begin()
    for index, ids in enumerate(lists):
        try:
            text = await tokenizer.decode(ids, skip_special=body.skip_special_tokens is not False)
        except InvalidRequestError as error:
            if is_batch:
                rename_fields(error, {"ids": f"ids[{index}]"})
            raise
        texts.append(text)
        # Each takes less than a millisecond, but not all of them.
        await asyncio.sleep(0)
        if time.monotonic() > call.deadline:
            raise DeadlineExpiredError("the deadline passed before the answer")
    describe_call(operation="decode", request_model=served.id, response_model=served.id)
    packed = json_list(texts)
    check_response_size(len(packed), limit=limit)
    return Answer(packed)


def _read_ids(value: list[TokenId | list[TokenId]]) -> tuple[Sequence[Sequence[int]], bool]:
    """Return the lists of ids, and whether the body has several.

    Raises:
        InvalidRequestError: There are ids beside lists.
    """
    kinds = set(map(type, value))
    if kinds == {int}:
        return [value], False  # type: ignore[list-item] # all are ids
    if kinds <= {list}:
        return value, True  # type: ignore[return-value] # all are lists of ids
    raise InvalidRequestError("ids must be a list of ids, or a list of such lists", field="ids")


ROUTES = (
    Route(
        "POST",
        "/tokenize",
        tokenize,
        tei_error,
        "Tokenize texts",
        TAG,
        list[list[SimpleToken]],
        body=TokenizeRequest,
        example={"inputs": ["Rivers flow to the sea."]},
        fields={"options.": "", "texts": "inputs"},
        need=Need(Service.TOKENIZE),
    ),
    Route(
        "POST",
        "/decode",
        decode,
        tei_error,
        "Turn tokens into text",
        TAG,
        list[str],
        body=DecodeRequest,
        example={"ids": [[5, 6]], "skip_special_tokens": True},
        need=Need(Service.TOKENIZE),
    ),
)
