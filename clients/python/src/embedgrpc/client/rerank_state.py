"""The state of one stream of rankings. No I/O, no locks."""

from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from typing_extensions import Unpack

from embedgrpc.client.decoding import decode_ranking, decode_rerank_ready
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.errors import (
    BadResponseError,
    EmbedGrpcError,
    FieldViolation,
    InputTooLongError,
    InvalidRequestError,
)
from embedgrpc.client.inputs import valid_text, valid_texts
from embedgrpc.client.options import RerankOptions, option_texts, rerank_options
from embedgrpc.client.request_limit import INPUT_OVERHEAD_BYTES, RequestLimit, combined_error
from embedgrpc.client.result_types import RerankResult, RerankStreamReady
from embedgrpc.client.status_errors import error_of_item
from embedgrpc.client.stream_state import Kept, StreamState
from embedgrpc.v1 import rerank_service_pb2 as pb

Query = tuple[str, Iterable[str]] | tuple[Any, str, Iterable[str]]
RerankInputs = Iterable[Query]
AsyncRerankInputs = RerankInputs | AsyncIterable[Query]


@dataclass(slots=True)
class _Query:
    """A query without a result.

    Attributes:
        text: The query.
        documents: The documents to send.
        sent: The positions of these among the documents of the caller.
        unsent: The errors of the caller's other documents, by position.
        next_document: The first document that was not sent yet.
    """

    text: str
    documents: Sequence[str]
    sent: Sequence[int]
    unsent: Mapping[int, EmbedGrpcError]
    next_document: int = 0


class RerankState(StreamState[RerankResult, RerankStreamReady]):
    """The state of a stream whose inputs are queries with documents.

    A query is sent once the window has room for all of its documents, in as many messages as its
    size needs. The arguments and errors are those of `ClientApi.rerank_stream`.
    """

    _answer_step = "result"

    def __init__(
        self,
        inputs: AsyncRerankInputs,
        *,
        model: str,
        allow_partial: bool,
        timeout_s: float,
        reconnect_s: float,
        request_limit: RequestLimit,
        **options: Unpack[RerankOptions],
    ) -> None:
        setup = pb.StreamRerankRequest(
            setup=pb.StreamRerankSetup(
                model=valid_text("model", model),
                options=rerank_options(**options),
                allow_partial=allow_partial,
                max_response_bytes=RESPONSE_BYTES_MAX,
            )
        )
        request_limit.check(setup, {"model": model} | option_texts(options))
        super().__init__(
            inputs,
            setup=setup,
            in_input_order=False,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            request_limit=request_limit,
        )
        self.method = lambda stubs: stubs.rerank.StreamRerank
        self._allow_partial = allow_partial
        self._queries: dict[str, _Query] = {}  # without a result, by position
        self._sending: tuple[str, _Query] | None = None  # the query of the next message
        self._in_flight_count = 0  # of documents
        self._to_send_again: deque[str] = deque()  # positions of queries

    def has_room(self) -> bool:
        """Return whether to send the next part of a query, or to read another one."""
        if self.ready is None or not self.accepted:
            return False
        self._send_next_again()
        room = self.ready.max_in_flight_inputs - self._in_flight_count - len(self._failed)
        if self._sending is None:
            return room > 0
        _, query = self._sending
        return query.next_document > 0 or room >= len(query.documents)

    def _add(self, item: object) -> None:
        """Add one query; `next_message` returns its parts.

        Args:
            item: A query and its documents, or an id, a query and its documents.

        Raises:
            TypeError: The item is neither.
            ValueError: A text is not valid Unicode.
        """
        position = str(self._read_count)
        field = f"inputs[{position}]"
        match item:
            case (text, documents):
                caller_id: Any = position
            case (caller_id, text, documents):
                pass
            case _:
                raise TypeError(f"{field} is neither (query, documents) nor (id, query, documents)")
        query_text = valid_text(f"{field}.query", cast("str", text))
        valid = valid_texts(f"{field}.documents", cast("Iterable[str]", documents))
        self._read_count += 1
        self._begin_query(position, (caller_id, query_text, valid))

    def _begin_query(self, position: str, kept: Kept) -> None:
        """Send a query next, or fail it."""
        caller_id, query_text, documents = kept
        try:
            query = self._plan(f"inputs[{position}]", query_text, documents)
        except (InputTooLongError, InvalidRequestError) as error:
            self._unanswered.pop(position, None)
            result = RerankResult(caller_id, error=error.with_traceback(None))
            self._failed[int(position)] = kept, result
            return
        self._unanswered[position] = kept
        self._queries[position] = query
        self._sending = position, query

    def restart(self) -> None:
        """Begin another call, on which every query without a result is sent again."""
        super().restart()
        self._sending = None
        self._queries.clear()
        self._in_flight_count = 0
        self._to_send_again = deque(self._unanswered)

    def next_message(self) -> pb.StreamRerankRequest | None:
        """Return the next part of the query that was added; None after its last."""
        if self._sending is None or self.ready is None:
            return None
        position, query = self._sending
        is_first = query.next_document == 0
        if is_first:
            self._in_flight_count += len(query.documents)
        part = pb.StreamRerankPart(id=position, query=query.text if is_first else "")
        size = INPUT_OVERHEAD_BYTES + (len(query.text.encode()) if is_first else 0)
        end = query.next_document + self.ready.max_part_inputs
        for document in query.documents[query.next_document : end]:
            size += len(document.encode()) + INPUT_OVERHEAD_BYTES
            if part.documents and size > self._message_bytes_max():
                break
            part.documents.append(document)
        query.next_document += len(part.documents)
        part.more = query.next_document < len(query.documents)
        if not part.more:
            self._sending = None
        self.begin_wait()
        return pb.StreamRerankRequest(part=part)

    def _send_next_again(self) -> None:
        while self._to_send_again and self._sending is None:
            position = self._to_send_again.popleft()
            self._begin_query(position, self._unanswered[position])

    def _plan(self, field: str, text: str, documents: list[str]) -> _Query:
        """Return a query that can be sent; raise the error of one that cannot."""
        limit = self._request_limit
        too_long = limit.too_long(f"{field}.documents", documents)
        if too_long and (not self._allow_partial or len(too_long) == len(documents)):
            raise combined_error(list(too_long.values()))
        sent = [index for index in range(len(documents)) if index not in too_long]
        count = len(sent)
        most = self._documents_max()
        if not 1 <= count <= most:
            what = f"has {count} documents; a query has from 1 to {most}"
            raise InvalidRequestError(
                f"{field} {what}",
                metadata={"label": "TOO_MANY_INPUTS" if count else "NO_INPUTS"},
                field_violations=(
                    FieldViolation(f"{field}.documents", what, InvalidRequestError.reason),
                ),
            )
        query_bytes = len(text.encode())
        limit.check_text(f"{field}.query", query_bytes)
        # The first document travels with the query.
        limit.check_text(
            f"{field}.documents[{sent[0]}]",
            len(documents[sent[0]].encode()),
            beside_bytes=query_bytes + INPUT_OVERHEAD_BYTES,
        )
        return _Query(text, [documents[index] for index in sent], sent, too_long)

    def _documents_max(self) -> int:
        if self.ready is None:
            return 0
        return min(self.ready.max_query_inputs, self.ready.max_in_flight_inputs)

    def _accept(self, message: pb.StreamRerankReady) -> RerankStreamReady:
        return decode_rerank_ready(message)

    def _results_of(self, response: pb.StreamRerankResponse) -> Iterable[pb.StreamRerankResult]:
        self.input_tokens += response.result.ranking.usage.input_tokens
        return (response.result,)

    def _decode(self, result: pb.StreamRerankResult, caller_id: Any) -> RerankResult:
        query = self._queries.get(result.id)
        if query is None or query.next_document == 0 or self.ready is None:
            raise BadResponseError("a result has the id of a query that was not sent")
        outcome = result.WhichOneof("outcome")
        if outcome is None:
            raise BadResponseError("a result of the stream has neither ranking nor error")
        decoded = (
            RerankResult(caller_id, error=error_of_item(result.error))
            if outcome == "error"
            else RerankResult(
                caller_id, decode_ranking(result.ranking, query.sent, query.unsent, self.ready)
            )
        )
        del self._queries[result.id]
        self._in_flight_count -= len(query.documents)
        return decoded

    def _unsent_count(self) -> int:
        waits = self._sending is not None and self._sending[1].next_document == 0
        return len(self._to_send_again) + waits

    def _with_id(self, item: Any, position: str) -> Any:
        match item:
            case (text, documents):
                return position, text, documents
            case _:
                return item
