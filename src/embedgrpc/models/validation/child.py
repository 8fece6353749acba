"""The child process that reads a model's files first; see `validation.py`."""

import dataclasses
import logging
import time
import traceback
from collections.abc import Iterable
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.progress import reporter
from embedgrpc.models.validation.child_process import Parent, limit_process

_MESSAGE_CHARACTERS_MAX = 4000
_PROGRESS_INTERVAL_S = 0.2
_logger = logging.getLogger(__name__)
# Every kind of character that tokenizers treat specially.
_SCRIPTS = (
    "\u6771\u4eac\u90fd \u041c\u043e\u0441\u043a\u0432\u0430 \u0645\u0631\u062d\u0628\u0627"
    " \u0928\u092e\u0938\u094d\u0924\u0947 \uac00\ub098\ub2e4 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"
    " \ufdfa \U0001f600 e\u0301 \u200b\t\r\n\u00a0"
)
_TRIAL_TEXTS = (
    "A model's first text, with figures (3.14), MiXeD case; caf\u00e9 \u2026",
    _SCRIPTS,
    "".join(map(chr, range(32, 127))) * 40,
    "word " * 2000,
    "x" * 8000,
)


def main() -> None:
    """Validate the model that the parent process names, and send it the result."""
    parent = Parent()
    job = parent.receive()
    limit_process(job.memory_bytes)
    logging.getLogger("embedgrpc").addHandler(_Forwarder(parent))
    reporter.display = _ProgressSender(parent).send
    try:
        _validate(job, parent)
    except ModelError as error:
        result: dict[str, Any] = {"error": str(error)[:_MESSAGE_CHARACTERS_MAX]}
    except MemoryError:
        result = {"memory": True}
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        place = job.validation.files.folder
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        result = {
            "error": f"{place} cannot be read: {problem[:_MESSAGE_CHARACTERS_MAX]}",
            "stack": traceback.format_exc()[-8000:],
        }
    else:
        result = {}
    parent.send({"result": result})


def _validate(job: Any, parent: Parent) -> None:
    # Imported after the limits of this process are set.
    from embedgrpc.models.folder import properties  # noqa: PLC0415 - see above
    from embedgrpc.models.folder.routes import read_routes  # noqa: PLC0415 - see above
    from embedgrpc.models.graphs import graph  # noqa: PLC0415 - see above
    from embedgrpc.models.graphs.cache import load_or_build, tag_unfinished  # noqa: PLC0415 - see above
    from embedgrpc.models.remote.fingerprint import find_fingerprint  # noqa: PLC0415 - see above
    from embedgrpc.models.tokenizers.tokenizer import Tokenizer  # noqa: PLC0415 - see above
    from embedgrpc.models.validation.validation import hash_files  # noqa: PLC0415 - see above

    tag_unfinished(job.tag)
    validation = job.validation
    files = validation.files
    if job.listing is not None:
        files = dataclasses.replace(files, repository=_Repository(parent, job.listing))
    if validation.served is None:
        routes = list(read_routes(files, validation.overrides).by_route.values())
    else:
        routes = [properties.read(files, validation.overrides, served=validation.served)]
    for described in routes:
        escape = validation.escape_special_tokens
        tokenizer = Tokenizer.load(described, escape_special_tokens=escape)
        tokenizer.encode(_TRIAL_TEXTS)
        if validation.build:
            graph.prepare(files, described, cache_dir=validation.cache_dir)
    if not validation.build and validation.served is not None:
        # Fills the cache with the facts about the graph that a fingerprint needs.
        find_fingerprint(
            files,
            routes[0],
            validation.overrides,
            declared="",
            place=[],
            cache_dir=validation.cache_dir,
        )
    digests = hash_files(validation)
    if digests.key != job.key:
        raise ModelError(f"{files.folder} changed while it was read: start again")
    try:
        load_or_build(validation.cache_dir, job.key, lambda _: {"files": dict(digests.digests)})
    except ModelError as error:
        # The cache is read-only, but has everything else. The next start validates again.
        _logger.warning("model is validated at each start", extra={"problem": str(error)})


class _Repository:
    """A repository whose files the parent downloads."""

    name = commit = ""

    def __init__(self, parent: Parent, listing: frozenset[str]) -> None:
        self._parent = parent
        self.names = listing

    def has(self, name: str) -> bool:
        """Whether the repository has a file."""
        return name in self.names

    def fetch(self, names: Iterable[str]) -> None:
        """Ask the parent to download files.

        Raises:
            ModelError: The download failed.
        """
        answer = self._parent.ask({"fetch": list(names)})
        if answer.get("error"):
            raise ModelError(str(answer["error"]))


class _Forwarder(logging.Handler):
    """Sends warnings to the parent, which logs them."""

    def __init__(self, parent: Parent) -> None:
        super().__init__(logging.WARNING)
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message with its fields."""
        fields = {name: getattr(record, name, None) for name in ("entry", "problem")}
        extra = {name: str(value) for name, value in fields.items() if value is not None}
        self._parent.send({"log": record.getMessage(), "extra": extra})


class _ProgressSender:
    """Sends progress to the parent process, a few times a second."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._sent_s = 0.0

    def send(self, what: str, done: int, total: int) -> None:
        """Send how many bytes of the total are done; the parent knows of what."""
        del what
        now = time.monotonic()
        if done < total and now - self._sent_s < _PROGRESS_INTERVAL_S:
            return
        self._sent_s = now
        self._parent.send({"progress": [done, total]})


if __name__ == "__main__":
    main()
