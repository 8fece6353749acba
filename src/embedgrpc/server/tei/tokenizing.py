"""Tokenize and Decode of tei.v1."""

import asyncio

from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.models.tokenizers.tokenized_text import TokenizedText
from embedgrpc.server.contract.options import read_prompt
from embedgrpc.server.contract.response_sizes import check_response_size
from embedgrpc.server.services.tokenizer import FEW_BYTES, FEW_TOKENS
from embedgrpc.server.tei.request import Prepared, TeiAnswer, TeiRequest
from embedgrpc.server.tei.rules import tokens_of
from embedgrpc.server.telemetry.call_record import note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import tokenizer_service_pb2

# Id, places, flag, and all keys, beside the text of the token.
_TOKEN_BYTES = 32
# No vocabulary makes more bytes of a token.
_TOKEN_TEXT_BYTES = 64


def prepare_tokens(request: TeiRequest) -> Prepared:
    """Read an `EncodeRequest`."""
    message, loaded = request.message, request.served.ready()
    options = tokenizer_service_pb2.TokenizeOptions()
    if message.HasField("prompt_name"):
        options.prompt_name = message.prompt_name
    prompt = read_prompt(options, loaded.properties, field="options")
    # Places are those in the text with its prompt.
    text = prompt + message.inputs
    tokenizer = loaded.text_tokenizer
    limit = min(request.settings.max_response_bytes, request.max_response_bytes)

    async def run() -> TeiAnswer:
        note_inputs(1)
        (tokenized,) = await tokenizer.tokenize(
            [text], request.call, prompt="", with_special=message.add_special_tokens
        )
        tokens = len(tokenized.ids)
        describe_call(
            operation="tokenize",
            request_model=request.served.id,
            response_model=request.served.id,
            input_tokens=tokens,
        )
        check_response_size(tokens * _TOKEN_BYTES, limit=limit)
        if tokens <= FEW_TOKENS and len(text) <= FEW_BYTES:
            wire = _pack(text, tokenized, tokenizer)
        else:
            wire = await asyncio.to_thread(_pack, text, tokenized, tokenizer)
        check_response_size(len(wire), limit=limit)
        return TeiAnswer(wire)

    return Prepared((1 + len(text)) * _TOKEN_BYTES, run)


def prepare_text(request: TeiRequest) -> Prepared:
    """Read a `DecodeRequest`."""
    message = request.message
    ids = list(message.ids)
    tokenizer = request.served.ready().text_tokenizer
    limit = min(request.settings.max_response_bytes, request.max_response_bytes)

    async def run() -> TeiAnswer:
        note_inputs(1)
        text = await tokenizer.decode(ids, skip_special=message.skip_special_tokens)
        wire = tei_pb2.DecodeResponse(text=text).SerializeToString()
        check_response_size(len(wire), limit=limit)
        return TeiAnswer(wire)

    return Prepared(len(ids) * _TOKEN_TEXT_BYTES, run)


def _pack(text: str, tokenized: TokenizedText, tokenizer: TextTokenizer) -> bytes:
    tokens = [tei_pb2.SimpleToken(**one._asdict()) for one in tokens_of(text, tokenized, tokenizer)]
    return tei_pb2.EncodeResponse(tokens=tokens).SerializeToString()
