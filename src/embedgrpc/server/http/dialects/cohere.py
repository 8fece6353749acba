"""Cohere's embeddings.

Source: Cohere's API reference of POST /v2/embed, and what its Python client sends and parses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final
from uuid import uuid4

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.names import list_names, show_name
from embedgrpc.server.contract.words import read_input_type, read_truncation
from embedgrpc.server.http.dialects.answers import EmbeddingsByTypeAnswer
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import (
    INPUTS,
    Dimensions,
    InputType,
    Model,
    Texts,
    TruncateWord,
    about,
    at_most,
    one_of,
)
from embedgrpc.server.http.numbers import Int32
from embedgrpc.server.http.rows import base64_rows, dense_of, number_rows
from embedgrpc.server.http.work import embed
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import embedding_service_pb2

_TAG = "Cohere, Jina, vLLM"
_FIELDS: Final = {
    "options.dimensions": "output_dimension",
    "options.truncation": "truncate",
    "options.": "",
}
# The size of a number in JSON, in bytes of its float32.
_COPIES: Final[Mapping[str, float]] = {
    "float": 3.5,
    "base64": 1.4,
    "int8": 1.3,
    "ubinary": 0.2,
    "binary": 0.2,
}


class Content(msgspec.Struct):
    """A part of an input."""

    type: Annotated[str, about("The kind of the part: only text is accepted.", enum=["text"])]
    text: Annotated[str | None, about("The text.")] = None


class Input(msgspec.Struct):
    """An input made of parts."""

    content: Annotated[
        list[Content], about("The parts: one, of type text.", minItems=1, maxItems=1)
    ]


class CohereEmbedRequest(msgspec.Struct):
    """The body of POST /v2/embed."""

    texts: Annotated[Texts | None, about("The texts; or give inputs.")] = None
    inputs: Annotated[
        Annotated[list[Input], INPUTS] | None, about("The texts as parts; or give texts.")
    ] = None
    images: Annotated[
        list[str] | None, about("Images cannot be embedded: leave it out.", enum=[None])
    ] = None
    model: Model = None
    input_type: InputType = None
    embedding_types: Annotated[
        Annotated[list[Annotated[str, one_of(*_COPIES)]], at_most(len(_COPIES))] | None,
        about("The number formats of the vectors; each gives a list.", default=["float"]),
    ] = None
    output_dimension: Dimensions = None
    max_tokens: Annotated[
        Int32 | None,
        about("Cut each text to so many tokens; 0 means the model's limit.", minimum=0),
    ] = None
    truncate: TruncateWord = None


async def embed_texts(exchange: Exchange) -> Answer:
    """Embed texts in one or several number formats."""
    body: CohereEmbedRequest = exchange.body
    formats = _read_formats(body.embedding_types)
    answer = await embed(
        exchange,
        _read_texts(body),
        _read_options(body),
        model=body.model or "",
        field="inputs" if body.texts is None else "texts",
        copies=sum(_COPIES[one] for one in formats),
        pack=lambda embedded: _pack(embedded, formats),
    )
    return Answer(answer)


def _read_formats(names: Sequence[str] | None) -> Sequence[str]:
    for name in names or ():
        if name not in _COPIES:
            what = f"{show_name(name)} is not supported" + (
                ": its numbers would need an offset, for which the answer has no place"
                if name == "uint8"
                else ""
            )
            raise UnsupportedError(
                f"embedding_types: {what}; supported: {list_names(tuple(_COPIES))}",
                field="embedding_types",
            )
    return tuple(dict.fromkeys(names or ("float",)))


def _read_texts(body: CohereEmbedRequest) -> Sequence[str]:
    if body.images is not None:
        raise UnsupportedError("images cannot be embedded", field="images")
    if (body.texts is None) == (body.inputs is None):
        raise InvalidRequestError("the body must have either texts or inputs", field="texts")
    if body.texts is not None:
        return body.texts
    return [_read_input(one, index) for index, one in enumerate(body.inputs or ())]


def _read_input(value: Input, index: int) -> str:
    """Return the text of an input; several parts would be one vector of several texts."""
    match value.content:
        case [Content(type="text", text=str(text))]:
            return text
        case _:
            place = f"inputs[{index}].content"
            raise UnsupportedError(f"{place} must be one part of type text", field=place)


def _read_options(body: CohereEmbedRequest) -> embedding_service_pb2.EmbedOptions:
    options = embedding_service_pb2.EmbedOptions(
        dimensions=body.output_dimension or 0,
        truncation=read_truncation(body.truncate),
        max_tokens=body.max_tokens or 0,
    )
    if body.input_type is not None:
        options.input_type = read_input_type(body.input_type)
    return options


def _pack(embedded: EmbeddedBatch, formats: Sequence[str]) -> bytes:
    vectors = dense_of(embedded)
    scales: FloatArray | None = None
    parts: list[bytes] = []
    for name in formats:
        rows, row_scales = _write(vectors, name)
        scales = scales if row_scales is None else row_scales
        parts.append(b'"%s":[%s]' % (name.encode(), b",".join(rows)))
    rest = {
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": embedded.input_tokens},
        },
        "model": embedded.served.id,
        "fingerprint": embedded.loaded.fingerprint,
    }
    return b'{"id":"%s","response_type":"embeddings_by_type","embeddings":{%s}%s,%s' % (
        str(uuid4()).encode(),
        b",".join(parts),
        # An extension: the factors that restore the numbers of int8.
        b"" if scales is None else b',"int8_scales":%s' % next(number_rows(scales[None])),
        msgspec.json.encode(rest)[1:],
    )


def _write(vectors: FloatArray, name: str) -> tuple[Iterable[bytes], FloatArray | None]:
    """Write vectors in one number format; return the scales of int8, too."""
    match name:
        case "base64":
            return base64_rows(encode(vectors, Encoding.FLOAT32).data), None
        case "int8":
            encoded = encode(vectors, Encoding.INT8)
            return number_rows(encoded.data), encoded.scales
        case "ubinary":
            return number_rows(encode(vectors, Encoding.UBINARY).data), None
        case "binary":
            return _signed(encode(vectors, Encoding.UBINARY).data), None
        case _:
            return number_rows(encode(vectors, Encoding.FLOAT32).data), None


def _signed(data: NDArray[np.generic]) -> Iterator[bytes]:
    """Write packed bits as signed numbers.

    Source: sentence-transformers, `quantize_embeddings` with precision "binary".
    """
    return number_rows((data.astype(np.int16) - 128).astype(np.int8))


ROUTES = (
    Route(
        "POST",
        "/v2/embed",
        embed_texts,
        openai_error,
        "Embed texts in several number formats",
        _TAG,
        EmbeddingsByTypeAnswer,
        body=CohereEmbedRequest,
        example={"texts": ["Rivers flow to the sea."], "embedding_types": ["float", "int8"]},
        fields=_FIELDS,
        need=Need(Service.EMBED),
    ),
)
