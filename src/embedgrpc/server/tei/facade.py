"""Runs the methods of tei.v1 by the rules of `embedgrpc.v1`."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from embedgrpc.engine.errors import EngineError, InvalidRequestError, UnsupportedError
from embedgrpc.engine.work import CallTimes
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes, find_metadata
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.calls.requests import RequestStream
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.loading.catalog import Catalog, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.tei.item_stream import ItemStream
from embedgrpc.server.tei.ranking import prepare_stream
from embedgrpc.server.tei.request import Prepare, Prepared, TeiAnswer, TeiRequest, headers_of
from embedgrpc.v1 import common_pb2

_MODEL_KEY = "embedgrpc-model"
# Names of `embedgrpc.v1` as they are here.
_FIELDS: Final[Mapping[str, str]] = {
    "options.token_vectors": "inputs",
    "options.": "",
    "inputs[0]": "inputs",
    "texts[0]": "inputs",
    "pairs[0].first": "inputs[0]",
    "pairs[0].second": "inputs[1]",
    "pairs[0]": "inputs",
    "documents": "texts",
}


class Facade:
    """Runs methods of tei.v1.

    Args:
        catalog: The models.
        settings: The settings.
        open_streams: The registry of streams.
    """

    def __init__(self, catalog: Catalog, settings: Settings, open_streams: OpenStreams) -> None:
        self._catalog = catalog
        self._settings = settings
        self._open_streams = open_streams

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self._settings

    def model_of(self, context: Any) -> ServedModel:
        """Return the model of a call: that of its metadata, or else that of the settings.

        Raises:
            EngineError: The metadata name no model.
        """
        named = find_metadata(context, _MODEL_KEY)
        name = named.decode(errors="replace") if isinstance(named, bytes) else named
        return self._catalog.find(name or self._settings.tei_model, field=_MODEL_KEY)

    async def answer(self, message: Any, context: Any, prepare: Prepare) -> bytes:
        """Answer a unary call, with what it took in its initial metadata."""
        request = self._begin(message, context, WorkClass.INTERACTIVE)
        with renamed_errors():
            return await self._respond(prepare(request), request, context)

    async def answer_ranking(self, messages: RequestStream, context: Any) -> bytes:
        """Answer a stream of texts to rank with one response."""
        request = self._begin(None, context, WorkClass.INTERACTIVE)
        with renamed_errors():
            prepared = await prepare_stream(request, messages)
            return await self._respond(prepared, request, context)

    async def stream(self, messages: RequestStream, context: Any, prepare: Prepare) -> None:
        """Answer every message of a stream."""
        request = self._begin(None, context, WorkClass.BULK)

        def prepare_item(message: Any, began_ns: int) -> Prepared:
            with renamed_errors():
                item = replace(
                    request,
                    message=message,
                    # Each has its own times.
                    call=replace(request.call, times=CallTimes()),
                    began_ns=began_ns,
                    # The stream reserves before it runs an item.
                    reserve=_already_reserved,
                )
                prepared = prepare(item)

            async def run() -> TeiAnswer:
                with renamed_errors():
                    return await prepared.run()

            return Prepared(prepared.answer_bytes, run)

        stream = ItemStream(context, messages, self._settings, prepare_item)
        with self._open_streams.watch(stream.bidi):
            await stream.run()

    def _begin(self, message: Any, context: Any, work_class: WorkClass) -> TeiRequest:
        began_ns = time.monotonic_ns()
        # Streams last as long as their clients like.
        is_unary = work_class is WorkClass.INTERACTIVE
        call = begin_call(
            context,
            work_class,
            self._settings,
            priority=common_pb2.PRIORITY_UNSPECIFIED,
            field="",
            max_s=self._settings.max_unary_s if is_unary else math.inf,
        )
        return TeiRequest(
            message=message,
            served=self.model_of(context),
            settings=self._settings,
            call=call,
            began_ns=began_ns,
            max_response_bytes=client_response_bytes(context, 0),
            reserve=reserve_response,
        )

    async def _respond(self, prepared: Prepared, request: TeiRequest, context: Any) -> bytes:
        answer = await prepared.run()
        if answer.metadata is not None:
            device = request.served.ready().device
            await context.send_initial_metadata(headers_of(answer.metadata, device=device))
        return answer.to_wire()


async def _already_reserved(_: int) -> None:
    pass


@contextmanager
def renamed_errors() -> Iterator[None]:
    """Let errors name the fields of tei.v1, whose clients expect INVALID_ARGUMENT for a prompt."""
    try:
        yield
    except UnsupportedError as error:
        rename_fields(error, _FIELDS)
        if error.field != "prompt_name":
            raise
        raise InvalidRequestError(
            error.message, field=error.field, metadata=error.metadata
        ) from None
    except EngineError as error:
        rename_fields(error, _FIELDS)
        raise
