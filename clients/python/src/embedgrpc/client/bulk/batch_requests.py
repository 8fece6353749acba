"""The batch files of OpenAI's API: a request for embeddings in each line, and its answer.

A request has one text or a list of texts. Each text is a row of a unit, and a unit holds whole
requests. The answer has the vectors of all texts, or the error of the first that failed.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from embedgrpc.client.bulk.json_numbers import json_numbers
from embedgrpc.client.bulk.part import Part

BATCH_FORMAT: Final = "openai-batch"
ID: Final = "custom_id"
KEPT: Final = ("count", "encoding_format")
_URL: Final = "/v1/embeddings"
_REQUEST: Final = {ID, "method", "url", "body"}
# What `user` says is for logs, and nothing depends on it.
_BODY: Final = {"input", "model", "encoding_format", "dimensions", "user"}
_OF_THE_TEXT: Final = ("EMPTY_INPUT", "INPUT_TOO_LONG", "INVALID_REQUEST")


class BatchRequestError(ValueError):
    """A line is no request that can be answered; the message says why, without its text."""


def request_rows(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each text of a request.

    Raises:
        BatchRequestError: It is no request for embeddings, or asks for what there is not.
    """
    _require_known(request, _REQUEST, "the request")
    body = request.get("body")
    if not isinstance(request.get(ID), str):
        raise BatchRequestError(f"has no {ID!r}")
    if request.get("url") != _URL or request.get("method", "POST") != "POST":
        raise BatchRequestError(f"is no POST to {_URL}")
    if not isinstance(body, dict):
        raise BatchRequestError("has no 'body'")
    _require_known(body, _BODY, "the body")
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise BatchRequestError("has an 'input' that is neither a text nor a list of texts")
    encoding_format = body.get("encoding_format") or "float"
    if encoding_format not in ("float", "base64"):
        raise BatchRequestError("has an 'encoding_format' that is neither float nor base64")
    shared = {ID: request[ID], "count": len(texts), "encoding_format": encoding_format}
    return [{"text": text, **shared} for text in texts]


def request_options(request: Mapping[str, Any]) -> tuple[str, int]:
    """Return the model and the dimensions that a request asks for; "" and 0 if it asks for none.

    Raises:
        BatchRequestError: They have the wrong type.
    """
    body = request["body"]
    model, dimensions = body.get("model") or "", body.get("dimensions") or 0
    if not isinstance(model, str):
        raise BatchRequestError("has a 'model' that is no text")
    if not isinstance(dimensions, int) or dimensions < 0:
        raise BatchRequestError("has 'dimensions' that are no positive number")
    return model, dimensions


def answer_lines(part: Part, model: str) -> Iterator[bytes]:
    """Yield the answer of each request of a part, as a line."""
    row = 0
    while row < part.unit.rows:
        count = part.columns["count"][row]
        answer = _answer(part, range(row, row + count), model)
        number = part.unit.first_row + row
        head = {"id": f"batch_req_{number}", ID: part.columns[ID][row]}
        yield (f'{json.dumps(head)[:-1]}, "response": {answer}, "error": null}}\n'.encode())
        row += count


def _answer(part: Part, rows: range, model: str) -> str:
    """Return the response to the request of some rows, as JSON."""
    request_id = f"req_{part.unit.first_row + rows.start}"
    error = next((part.errors[row] for row in rows if part.errors[row] is not None), None)
    if error is not None:
        reason, _, message = error.partition(": ")
        is_callers = reason in _OF_THE_TEXT
        body = {
            "message": message,
            "type": "invalid_request_error" if is_callers else "server_error",
            "param": "input" if is_callers else None,
            "code": reason.lower(),
        }
        status = 400 if is_callers else 500
        return json.dumps(
            {"status_code": status, "request_id": request_id, "body": {"error": body}}
        )
    items = ", ".join(
        f'{{"object": "embedding", "index": {index}, "embedding": {_vector(part, row)}}}'
        for index, row in enumerate(rows)
    )
    tokens = int(part.token_counts[rows.start : rows.stop].sum())
    usage = json.dumps({"prompt_tokens": tokens, "total_tokens": tokens})
    return (
        f'{{"status_code": 200, "request_id": "{request_id}", "body": {{"object": "list",'
        f' "data": [{items}], "model": {json.dumps(model)}, "usage": {usage}}}}}'
    )


def _vector(part: Part, row: int) -> str:
    if part.vectors is None:
        return "null"
    if part.columns["encoding_format"][row] == "base64":
        data = part.vectors[row].astype("<f4").tobytes()
        return f'"{base64.b64encode(data).decode()}"'
    return json_numbers(part.vectors[row])


def _require_known(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in fields:
        if name not in known:
            raise BatchRequestError(f"has the field {name!r} in {where}, which cannot be followed")
