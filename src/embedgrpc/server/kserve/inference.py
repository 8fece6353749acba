"""ModelInfer: texts to vectors, and pairs of texts to scores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from embedgrpc.engine.errors import EngineError, InvalidRequestError, ModelNotFoundError
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.caller import Service, current_caller
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_call import current_call
from embedgrpc.server.contract.field_checks import check_id
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.kserve.parameters import FIELD, FIELDS, Parameters
from embedgrpc.server.kserve.signature import (
    ALIASES,
    EMBEDDING,
    QUERY,
    SCORE,
    TEXT,
    TOKEN_COUNT,
    VERSION,
    Signature,
    Task,
    signature_of,
)
from embedgrpc.server.kserve.tensors import (
    Texts,
    find_inputs,
    find_outputs,
    read_texts,
    response_wire,
)
from embedgrpc.server.loading.catalog import Catalog, ServedModel
from embedgrpc.server.services.embed_batch import EmbedBatch, EmbeddedBatch, embed_batch
from embedgrpc.server.services.pair_scores import (
    QueryScores,
    score_pairs,
    scores_of,
)
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch
from embedgrpc.server.settings.settings import Settings

_SERVICES = {Task.EMBED: Service.EMBED, Task.RANK: Service.RERANK}
_DATATYPES = {"f": "FP32", "i": "INT32"}


def find_model(catalog: Catalog, name: str, version: str, *, field: str) -> ServedModel:
    """Return a model.

    Args:
        catalog: The models.
        name: Its id or an alias; empty for the default.
        version: Empty for any.
        field: The field with the name.

    Raises:
        InvalidRequestError: The name is too long.
        ModelNotFoundError: There is no such model, or not in this version.
    """
    served = catalog.find(name, field=field)
    if version not in ("", VERSION):
        raise ModelNotFoundError(
            f"the model {served.id} has no version {show_name(version)}; it has {VERSION}",
            field=f"{field.removesuffix('name')}version",
        )
    return served


@contextmanager
def renamed_errors() -> Iterator[None]:
    """Let errors name the parameters of the request in place of the contract's options."""
    try:
        yield
    except EngineError as error:
        rename_fields(error, FIELDS)
        raise


class Inference:
    """One ModelInfer call whose model was found.

    Args:
        request: The request.
        context: The RPC's context.
        served: The model.
        settings: The server's settings.

    Attributes:
        call: For whom.

    Raises:
        EngineError: The model cannot be called, or a rule is broken that needs no look at texts.
    """

    def __init__(
        self,
        request: service_pb2.ModelInferRequest,
        context: Any,
        served: ServedModel,
        settings: Settings,
    ) -> None:
        self._request = request
        self._served = served
        self._settings = settings
        self._loaded, self._signature = signature_of(served)
        current_caller().check_service(_SERVICES[self._signature.task])
        check_id(request.id, (), field="id")
        self._parameters = Parameters(request.parameters)
        self._outputs = find_outputs(request, _names_of(self._signature))
        self._places = find_inputs(request, self._signature.inputs)
        self.call: Call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            settings,
            priority=self._parameters.priority(),
            field=f"{FIELD}.priority",
            max_s=self._parameters.timeout_s(limit_s=settings.max_unary_s),
        )
        # Triton's clients accept messages of any size.
        self._max_response_bytes = client_response_bytes(
            context, 0, default=settings.max_response_bytes
        )

    async def run(self) -> bytes:
        """Return the response in wire form.

        Raises:
            EngineError: A rule is broken, an input failed, or there is no room or time for it.
        """
        if self._signature.task is Task.EMBED:
            return await self._embed()
        return await self._rank()

    async def _embed(self) -> bytes:
        read = await self._read(TEXT)
        batch = EmbedBatch(
            self._served,
            read.texts,
            self._parameters.embed_options(),
            size_bytes=read.size_bytes,
            max_response_bytes=self._max_response_bytes,
            request_model=self._request.model_name,
            field=TEXT,
            options_field=FIELD,
        )
        return await embed_batch(batch, self.call, self._settings, pack=self._pack_vectors)

    async def _rank(self) -> bytes:
        options = self._parameters.rank_options()
        queries = (await self._read(QUERY)).texts
        read = await self._read(TEXT)
        texts = read.texts
        if len(queries) not in (1, len(texts)):
            raise InvalidRequestError(
                f"{QUERY} has {len(queries)} elements and {TEXT} has {len(texts)}: it needs one"
                " for each, or one for all",
                field=QUERY,
            )
        is_shared = len(queries) < len(texts)

        async def score(query: str, documents: Sequence[str]) -> QueryScores:
            batch = RankBatch(
                self._served,
                query,
                documents,
                options,
                # No character has more bytes.
                size_bytes=min(4 * sum(map(len, documents)), read.size_bytes),
                max_response_bytes=self._max_response_bytes,
                request_model=self._request.model_name,
                options_field=FIELD,
            )
            return await rank_batch(batch, self.call, self._settings, pack=scores_of)

        def name(index: int, is_query: bool) -> str:  # noqa: FBT001 - the protocol of `score_pairs`
            return f"{QUERY}[{0 if is_shared else index}]" if is_query else f"{TEXT}[{index}]"

        pairs = list(zip(queries * len(texts) if is_shared else queries, texts, strict=True))
        found = await score_pairs(pairs, score, name=name)
        scores = np.array(found.scores, "<f4")[:, np.newaxis]  # float32 [n, 1]
        return self._pack(
            {SCORE: scores}, input_tokens=found.tokens, truncated_inputs=found.truncated
        )

    async def _read(self, name: str) -> Texts:
        call = current_call()
        return await read_texts(
            self._request,
            self._places[name],
            max_inputs=self._settings.max_inputs,
            request_bytes=call.request_bytes if call is not None else self._request.ByteSize(),
        )

    def _pack_vectors(self, embedded: EmbeddedBatch) -> bytes:
        embeddings = embedded.result.embeddings
        assert embeddings is not None and embeddings.vectors is not None  # noqa: S101, PT018 - they were asked for, and no text failed
        values = {
            EMBEDDING: encode(embeddings.vectors, Encoding.FLOAT32).data,  # float32 [n, dimensions]
            TOKEN_COUNT: np.array(embeddings.token_counts, "<i4"),  # int32 [n]
        }
        return self._pack(
            values,
            input_tokens=embedded.input_tokens,
            truncated_inputs=sum(embeddings.truncated),
        )

    def _pack(
        self,
        values: Mapping[str, NDArray[np.generic]],
        *,
        input_tokens: int,
        truncated_inputs: int,
    ) -> bytes:
        response = service_pb2.ModelInferResponse(
            model_name=self._served.id, model_version=VERSION, id=self._request.id
        )
        response.parameters["fingerprint"].string_param = self._loaded.fingerprint
        response.parameters["input_tokens"].int64_param = input_tokens
        response.parameters["truncated_inputs"].int64_param = truncated_inputs
        outputs = {}
        for name in self._outputs:
            found = values[ALIASES.get(name, name)]
            outputs[name] = (_DATATYPES[found.dtype.kind], found)
        raw = len(self._request.raw_input_contents) > 0
        return response_wire(response, outputs, raw=raw)


def _names_of(signature: Signature) -> Mapping[str, str]:
    """Return the outputs of a model by every name that they go by."""
    names = {one.name: one.name for one in signature.outputs}
    if signature.task is Task.EMBED:
        names |= ALIASES
    return names
