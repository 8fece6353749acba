"""One ModelInfer call: what it asks for, in the terms of all doors."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from embedgrpc.engine.errors import EngineError, ModelNotFoundError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.caller import Service, current_caller
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_call import current_call
from embedgrpc.server.contract.field_checks import check_id
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.kserve.input_tensors import Texts, find_inputs, read_texts
from embedgrpc.server.kserve.output_tensors import find_outputs, response_wire
from embedgrpc.server.kserve.parameters import FIELD, Parameters
from embedgrpc.server.kserve.signature import (
    ALIASES,
    TEXT,
    TEXT_PAIR,
    VERSION,
    Signature,
    Task,
    signature_of,
)
from embedgrpc.server.loading.catalog import Catalog, ServedModel
from embedgrpc.server.settings.settings import Settings

_SERVICES: Final = {
    Task.EMBED: Service.EMBED,
    Task.RANK: Service.RERANK,
    Task.CLASSIFY: Service.CLASSIFY,
}
_DATATYPES: Final = {"f": "FP32", "i": "INT32"}
# Fields of the contract, and what they are here. A pair at fault as a whole has the name of its
# first text.
_FIELDS: Final = (
    (re.compile(r"(options|parameters)\.truncation"), f"{FIELD}.truncate"),
    (re.compile(r"options\.(\w+)"), rf"{FIELD}.\1"),
    (re.compile(r"texts(\[\d+\])?"), rf"{TEXT}\1"),
    (re.compile(r"pairs(\[\d+\])\.second"), rf"{TEXT_PAIR}\1"),
    (re.compile(r"pairs(\[\d+\])?(?:\.first)?"), rf"{TEXT}\1"),
)


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
    """Let errors name tensors and parameters in place of the contract's fields."""
    try:
        yield
    except EngineError as error:
        for one in (error, *error.others):
            _rename(one)
        raise


def _rename(error: EngineError) -> None:
    for pattern, name in _FIELDS:
        found = pattern.fullmatch(error.field)
        if found:
            rename_fields(error, {error.field: found.expand(name)})
            return


class InferCall:
    """One ModelInfer call whose model was found.

    Args:
        request: The request.
        context: The RPC's context.
        served: The model.
        settings: The server's settings.

    Attributes:
        served: The model.
        settings: The server's settings.
        task: What the model does.
        name: The name of the model in the request; may be empty.
        call: For whom.
        parameters: The parameters; those that depend on the task are left to take.
        max_response_bytes: The largest response that the client accepts.

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
        self.served = served
        self.settings = settings
        self._loaded, signature = signature_of(served)
        self.task = signature.task
        current_caller().check_service(_SERVICES[self.task])
        self.name = request.model_name
        check_id(request.id, (), field="id")
        self.parameters = Parameters(request.parameters)
        self._outputs = find_outputs(request, _names_of(signature))
        self._places = find_inputs(request, signature.inputs)
        self.call: Call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            settings,
            priority=self.parameters.priority(),
            field=f"{FIELD}.priority",
            max_s=self.parameters.timeout_s(limit_s=settings.max_unary_s),
        )
        # Triton's clients accept messages of any size.
        self.max_response_bytes = client_response_bytes(
            context, 0, default=settings.max_response_bytes
        )

    def has(self, name: str) -> bool:
        """Return whether the request has an input that may be missing."""
        return name in self._places

    async def read(self, name: str) -> Texts:
        """Return the texts of an input.

        Raises:
            InvalidRequestError: It is no tensor of texts.
        """
        call = current_call()
        return await read_texts(
            self._request,
            self._places[name],
            max_inputs=self.settings.max_inputs,
            request_bytes=call.request_bytes if call is not None else self._request.ByteSize(),
        )

    def pack(
        self,
        values: Mapping[str, NDArray[np.generic]],
        *,
        input_tokens: int,
        truncated_inputs: int,
    ) -> bytes:
        """Return the response in wire form.

        Args:
            values: The outputs of the model, C-contiguous float32 or int32.
            input_tokens: Tokens that the model read.
            truncated_inputs: Texts that were cut.
        """
        response = service_pb2.ModelInferResponse(
            model_name=self.served.id, model_version=VERSION, id=self._request.id
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
