"""Reads tensors of texts, from bytes or from lists of values.

Source: KServe, "Open Inference Protocol", gRPC; its extension of binary tensor data for BYTES.
"""

import asyncio
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.field_checks import check_count, check_not_negative
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.kserve.signature import Tensor

_LENGTH = struct.Struct("<I")
# Texts of so many bytes are read in about a millisecond, however many they are.
_FEW_BYTES = 16_384
_RANK_MAX = 2


def find_inputs(
    request: service_pb2.ModelInferRequest, wanted: Sequence[Tensor]
) -> Mapping[str, int]:
    """Return the place of each input of a request.

    Raises:
        InvalidRequestError: An input is unknown, missing, or there twice, or the bytes do not
            belong to the inputs.
    """
    names = [one.name for one in wanted]
    places: dict[str, int] = {}
    for index, tensor in enumerate(request.inputs):
        # Read once: it may be megabytes.
        name = tensor.name
        if name not in names or name in places:
            twice = " again" if name in places else ""
            raise InvalidRequestError(
                f"inputs[{index}] is {show_name(name)}{twice}; the model takes {list_names(names)}",
                field=f"inputs[{index}].name",
            )
        refuse_parameters(tensor.parameters, of=name)
        places[name] = index
    for one in wanted:
        if one.name not in places and not one.optional:
            raise InvalidRequestError(
                f"inputs has no {one.name}; the model takes {list_names(names)}", field="inputs"
            )
    raw = len(request.raw_input_contents)
    if raw and raw != len(places):
        raise InvalidRequestError(
            f"raw_input_contents has {raw} entries for {len(places)} inputs: it needs one of each"
            " or none",
            field="raw_input_contents",
        )
    return places


def refuse_parameters(parameters: Mapping[str, Any], *, of: str) -> None:
    """Refuse parameters of a tensor, such as a place in shared memory or a number of classes.

    Raises:
        InvalidRequestError: There are some.
    """
    for name in parameters:
        shared = ": shared memory is not served, send values" if "shared_memory" in name else ""
        raise InvalidRequestError(
            f"{of} has the parameter {show_name(name)}; tensors take none{shared}",
            field=f"{of}.parameters",
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """The elements of an input.

    Attributes:
        texts: They, in order.
        size_bytes: At least their size in UTF-8 together.
    """

    texts: list[str]
    size_bytes: int


async def read_texts(
    request: service_pb2.ModelInferRequest, index: int, *, max_inputs: int, request_bytes: int
) -> Texts:
    """Return the elements of an input. Their number is checked before any is read.

    Args:
        request: The request, whose inputs were found.
        index: The place of the input.
        max_inputs: The most elements.
        request_bytes: The size of the request.

    Raises:
        InvalidRequestError: It is no tensor of UTF-8 of shape [n] or [n, 1].
    """
    if request_bytes <= _FEW_BYTES:
        return _read_texts(request, index, max_inputs)
    return await asyncio.to_thread(_read_texts, request, index, max_inputs)


def _read_texts(request: service_pb2.ModelInferRequest, index: int, max_inputs: int) -> Texts:
    tensor = request.inputs[index]
    name = tensor.name
    if tensor.datatype != "BYTES":
        raise InvalidRequestError(
            f"{name} has the datatype {show_name(tensor.datatype)}; it must be BYTES",
            field=f"{name}.datatype",
        )
    count = _read_shape(tensor, max_inputs=max_inputs)
    if not request.raw_input_contents:
        _check_contents(tensor, count)
        return _decode_all(tensor.contents.bytes_contents, field=name)
    if tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{name} has contents beside raw_input_contents", field=f"{name}.contents"
        )
    data = request.raw_input_contents[index]
    return Texts(split_texts(data, count, field=name), len(data))


def _read_shape(tensor: service_pb2.ModelInferRequest.InferInputTensor, *, max_inputs: int) -> int:
    """Return the number of elements."""
    name, rank = tensor.name, len(tensor.shape)
    field = f"{name}.shape"
    shape = list(tensor.shape) if rank <= _RANK_MAX else []
    if not shape or shape[1:] not in ([], [1]):
        given = f"the shape {shape}" if rank <= _RANK_MAX else f"{rank} dimensions"
        raise InvalidRequestError(f"{name} has {given}; it must be [n] or [n, 1]", field=field)
    check_not_negative(shape[0], field=field)
    check_count(shape[0], limit=max_inputs, field=name)
    return int(shape[0])


def _check_contents(tensor: service_pb2.ModelInferRequest.InferInputTensor, count: int) -> None:
    name = tensor.name
    for field, _ in tensor.contents.ListFields():
        if field.name != "bytes_contents":
            raise InvalidRequestError(
                f"{name} has {field.name}; the elements of BYTES stand in bytes_contents",
                field=f"{name}.contents",
            )
    given = len(tensor.contents.bytes_contents)
    if given != count:
        raise InvalidRequestError(
            f"{name} has {given} elements in bytes_contents; its shape says {count}",
            field=f"{name}.contents",
        )


def split_texts(data: bytes, count: int, *, field: str) -> list[str]:
    """Return the texts of a raw tensor: each has its length in front, in four bytes.

    Args:
        data: The tensor.
        count: The number of texts, within the limit.
        field: Its name.

    Raises:
        InvalidRequestError: It does not hold so many, or one is no UTF-8.
    """
    view = memoryview(data)
    texts: list[str] = []
    position = 0
    for index in range(count):
        left = len(data) - position
        if left < _LENGTH.size:
            raise InvalidRequestError(
                f"{field} has the bytes of {index} elements; its shape says {count}", field=field
            )
        (size,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        left -= _LENGTH.size
        if size > left:
            place = f"{field}[{index}]"
            raise InvalidRequestError(
                f"{place} has a length of {size} bytes, and {left} are left", field=place
            )
        texts.append(_decode(view[position : position + size], index, field=field))
        position += size
    if position != len(data):
        raise InvalidRequestError(
            f"{field} has {len(data) - position} bytes behind its {count} elements", field=field
        )
    return texts


def _decode_all(elements: Iterable[bytes], *, field: str) -> Texts:
    texts: list[str] = []
    size_bytes = 0
    for index, element in enumerate(elements):
        texts.append(_decode(element, index, field=field))
        size_bytes += len(element)
    return Texts(texts, size_bytes)


def _decode(element: bytes | memoryview, index: int, *, field: str) -> str:
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError as error:
        place, at = f"{field}[{index}]", error.start
    # Outside the block: else the error would hold the text.
    raise InvalidRequestError(f"{place} is no UTF-8: see its byte {at}", field=place)
