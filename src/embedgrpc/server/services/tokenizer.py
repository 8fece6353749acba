"""TokenizerService: validates and unpacks requests, packs responses."""

import asyncio
from typing import Any

import numpy as np

from embedgrpc.engine.tasks.tokenization import TextTokenizer, TokenizedText
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.options import no_route, read_prompt, read_text_role
from embedgrpc.server.contract.response_sizes import check_response_size
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog, LoadedModel, RoleTokenizer, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import common_pb2, tokenizer_service_pb2, tokenizer_service_pb2_grpc

# One call into protobuf with more numbers would hold up the event loop through the GIL.
_NUMBERS_AT_ONCE = 8192
# So many tokens are packed in a quarter of a millisecond.
_FEW_TOKENS = 256
# From these code points on, UTF-8 takes a byte more (RFC 3629).
_LONGER_FROM = (0x80, 0x800, 0x10000)
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

        return pack() if tokens <= _FEW_TOKENS else await asyncio.to_thread(pack)

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
        check_count(len(request.texts), limit=self._settings.max_inputs, field="texts")
        prompt = read_prompt(request.options, loaded.properties, field="options", default="")
        describe_call(
            operation="tokenize", request_model=request.model or served.id, response_model=served.id
        )
        return served, _choose(loaded, request.options), call, prompt


def _choose(loaded: LoadedModel, options: Any) -> RoleTokenizer:
    """Return what tokenizes texts: of a model with routes, the input type chooses it.

    Raises:
        UnsupportedError: The model has no route for such texts.
    """
    role = read_text_role(options, field="options") if loaded.has_routes else None
    found = loaded.text_tokenizers.get(role)
    if found is None:
        raise no_route(role, loaded.text_tokenizers.keys(), field="options")
    return found


def _pack(text: str, tokenized: TokenizedText, tokenizer: TextTokenizer) -> bytes:
    """Return a `TokenizedText` in wire form."""
    message = tokenizer_service_pb2.TokenizedText()
    places = _byte_places(text)
    for numbers, field in (
        (tokenized.ids, message.ids),
        (tokenized.starts, message.character_starts),
        (tokenized.ends, message.character_ends),
        (places[tokenized.starts], message.byte_starts),
        (places[tokenized.ends], message.byte_ends),
        (tokenized.special, message.special),
        (tokenized.of_prompt, message.of_prompt),
    ):
        for start in range(0, len(numbers), _NUMBERS_AT_ONCE):
            field.extend(numbers[start : start + _NUMBERS_AT_ONCE].tolist())
    entries = tokenizer.entries(tokenized)
    for start in range(0, len(entries), _NUMBERS_AT_ONCE):
        message.tokens.extend(entries[start : start + _NUMBERS_AT_ONCE])
    return message.SerializeToString()


def _byte_places(text: str) -> IntArray:
    """Return where each character starts in UTF-8, and where the text ends.

    Returns:
        int64 [characters + 1].
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = np.ones(len(codes), np.int64)
    for first in _LONGER_FROM:
        sizes += codes >= first
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
