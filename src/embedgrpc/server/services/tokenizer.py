"""TokenizerService: validates and unpacks requests, packs responses."""

import asyncio
from typing import Any

from embedgrpc.engine.tasks.tokenization import TextTokenizer
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.tokenized_text import TokenizedText, TokenPlaces
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.options import read_prompt, read_text_role
from embedgrpc.server.contract.response_sizes import check_response_size
from embedgrpc.server.contract.token_wire import NUMBERS_AT_ONCE, fill_places
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog, RoleTokenizer, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import common_pb2, tokenizer_service_pb2, tokenizer_service_pb2_grpc

# So many tokens are packed in a quarter of a millisecond.
FEW_TOKENS = 256
# The places of so many characters are found in half a millisecond. Blanks may make no tokens.
FEW_BYTES = 32_768
_TEXTS_FIELD = 1
# Ids and places of a token, with the keys.
_TOKEN_BYTES = 16


class TokenizerService(tokenizer_service_pb2_grpc.TokenizerServiceServicer):
    """Serves Tokenize and CountTokens.

    Args:
        catalog: The models.
        settings: The limits.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings

    async def Tokenize(  # noqa: N802 - the contract's name
        self, request: tokenizer_service_pb2.TokenizeRequest, context: Any
    ) -> bytes:
        """Tokenize texts.

        Returns:
            A `TokenizeResponse` in wire form.
        """
        accepted = client_response_bytes(context, request.max_response_bytes)
        limit = min(self._settings.max_response_bytes, accepted)
        served, role, call, prompt = self._begin(request, context)
        texts = list(request.texts)
        tokenized = await role.tokenizer.tokenize(
            texts, call, prompt=prompt, with_special=not request.options.omit_special_tokens
        )
        tokens = sum(len(one.ids) for one in tokenized)
        describe_call(input_tokens=tokens)
        check_response_size(tokens * _TOKEN_BYTES, limit=limit)

        def pack() -> bytes:
            parts = [
                delimited(_TEXTS_FIELD, _pack(text, one, role.tokenizer))
                for text, one in zip(texts, tokenized, strict=True)
            ]
            parts.append(
                tokenizer_service_pb2.TokenizeResponse(model=served.id).SerializeToString()
            )
            check_response_size(sum(map(len, parts)), limit=limit)
            return b"".join(parts)

        few = tokens <= FEW_TOKENS and request.ByteSize() <= FEW_BYTES
        return pack() if few else await asyncio.to_thread(pack)

    async def CountTokens(  # noqa: N802 - the contract's name
        self, request: tokenizer_service_pb2.CountTokensRequest, context: Any
    ) -> tokenizer_service_pb2.CountTokensResponse:
        """Count the tokens of texts."""
        served, role, call, prompt = self._begin(request, context)
        counts = await role.tokenizer.count(
            list(request.texts),
            call,
            prompt=prompt,
            with_special=not request.options.omit_special_tokens,
        )
        describe_call(input_tokens=sum(counts))
        return tokenizer_service_pb2.CountTokensResponse(
            token_counts=counts,
            total_tokens=sum(counts),
            max_tokens=role.max_tokens,
            model=served.id,
        )

    def _begin(self, request: Any, context: Any) -> tuple[ServedModel, RoleTokenizer, Call, str]:
        call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            self._settings,
            priority=common_pb2.PRIORITY_UNSPECIFIED,
            field="",
            max_s=self._settings.max_unary_s,
        )
        served = self._catalog.find(request.model)
        loaded = served.ready()
        note_inputs(len(request.texts))
        check_count(len(request.texts), limit=self._settings.max_inputs, field="texts")
        prompt = read_prompt(request.options, loaded.properties, field="options", default="")
        describe_call(
            operation="tokenize", request_model=request.model or served.id, response_model=served.id
        )
        role = read_text_role(request.options, field="options")
        return served, loaded.tokenizer_for(role), call, prompt


def _pack(text: str, tokenized: TokenizedText, tokenizer: TextTokenizer) -> bytes:
    """Return a `TokenizedText` in wire form."""
    message = tokenizer_service_pb2.TokenizedText()
    fill_places(message, TokenPlaces.find(tokenized, text))
    entries = tokenizer.entries(tokenized)
    for start in range(0, len(entries), NUMBERS_AT_ONCE):
        message.tokens.extend(entries[start : start + NUMBERS_AT_ONCE])
    return message.SerializeToString()
