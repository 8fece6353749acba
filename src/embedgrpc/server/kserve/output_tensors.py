"""Finds the outputs that a request asks for, and writes them as bytes or as lists of values.

Source: KServe, "Open Inference Protocol", gRPC.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.kserve.input_tensors import refuse_parameters

# Fields of the messages.
_OUTPUTS_FIELD = 5
_RAW_OUTPUTS_FIELD = 6
_CONTENTS_FIELD = 5
_FP32_FIELD = 6


def find_outputs(request: service_pb2.ModelInferRequest, known: Mapping[str, str]) -> list[str]:
    """Return the names of the outputs that a request asks for, all if it names none.

    Args:
        request: The request.
        known: The outputs by every name that they go by.

    Raises:
        InvalidRequestError: The model has no such output, or it is there twice.
    """
    names: list[str] = []
    asked: set[str] = set()
    for index, output in enumerate(request.outputs):
        name = output.name
        if name not in known or known[name] in asked:
            twice = " again" if name in known else ""
            raise InvalidRequestError(
                f"outputs[{index}] is {show_name(name)}{twice}; the model gives"
                f" {list_names(sorted(set(known.values())))}",
                field=f"outputs[{index}].name",
            )
        refuse_parameters(output.parameters, of=name)
        names.append(name)
        asked.add(known[name])
    return names or list(dict.fromkeys(known.values()))


def response_wire(
    response: service_pb2.ModelInferResponse,
    outputs: Mapping[str, tuple[str, NDArray[np.generic]]],
    *,
    raw: bool,
) -> bytes:
    """Return a response in wire form.

    Args:
        response: All but its outputs.
        outputs: The datatype and the values of each, FP32 or INT32, C-contiguous.
        raw: Whether to send them as bytes.
    """
    parts = [response.SerializeToString()]
    for name, (datatype, values) in outputs.items():
        parts.append(delimited(_OUTPUTS_FIELD, _tensor_wire(name, datatype, values, raw=raw)))
    if raw:
        for _, values in outputs.values():
            parts.append(delimited(_RAW_OUTPUTS_FIELD, values.tobytes()))
    return b"".join(parts)


def _tensor_wire(name: str, datatype: str, values: NDArray[np.generic], *, raw: bool) -> bytes:
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(
        name=name, datatype=datatype, shape=values.shape
    )
    contents = b""
    if not raw and datatype == "FP32":
        # Without a Python object for each number.
        contents = delimited(_CONTENTS_FIELD, delimited(_FP32_FIELD, values.tobytes()))
    elif not raw:
        tensor.contents.int_contents.extend(values.ravel().tolist())
    wire: bytes = tensor.SerializeToString()
    return wire + contents
