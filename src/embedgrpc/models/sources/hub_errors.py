"""Turns failures of the Hugging Face Hub into one line that says what to do."""

import errno
from dataclasses import dataclass

from embedgrpc.models.errors import ModelError, ModelUnavailableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({401, 403})
# The client is too slow or sends too many requests: a retry may succeed.
_TEMPORARY = frozenset({408, 425, 429})
_SERVER_ERRORS = range(500, 600)


@dataclass(frozen=True, slots=True)
class Named:
    """What the user named.

    Attributes:
        source: A model or an adapter, as the user wrote it.
        base: The source of the model that an adapter is for; empty for a model.
    """

    source: str
    base: str = ""

    @property
    def subject(self) -> str:
        """What an error is about."""
        kind = "adapter" if self.base else "model source"
        return f"{kind} {self.source!r}"

    @property
    def pull(self) -> str:
        """The command that downloads it."""
        if self.base:
            return f"embedgrpc pull {self.base} --model-adapter {self.source}"
        return f"embedgrpc pull {self.source}"


def explain(error: Exception, named: Named) -> ModelError:
    """Return the error to raise; a `ModelUnavailableError` if a retry may succeed.

    Args:
        error: From the library, its HTTP client or the file system.
        named: What the user named.
    """
    from huggingface_hub import errors, is_offline_mode  # noqa: PLC0415 - it loads slowly

    # These say that there is no cached copy. Their cause is why the download failed.
    not_cached = isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError))
    cause = error.__cause__ if not_cached and error.__cause__ is not None else error
    if is_offline_mode() and (not_cached or isinstance(cause, errors.OfflineModeIsEnabled)):
        return explain_absence(named, "it")
    permanent = _explain_refusal(cause) or _explain_cache(cause)
    if permanent:
        return ModelError(f"{_subject(named)}: {permanent}")
    temporary = _explain_failure(cause) or _explain_network(cause, named)
    return ModelUnavailableError(f"{_subject(named)}: {temporary}")


def explain_absence(named: Named, what: str) -> ModelError:
    """Return the error for a file that is not cached and cannot be downloaded.

    A retry may succeed, unless the library is in offline mode.
    """
    from huggingface_hub import constants, is_offline_mode  # noqa: PLC0415 - it loads slowly

    kind = ModelError if is_offline_mode() else ModelUnavailableError
    return kind(
        f"{_subject(named)}: {what} is not in the cache {constants.HF_HUB_CACHE}: "
        + _elsewhere(named)
    )


def _subject(named: Named) -> str:
    if named.source.startswith("hf:"):
        return named.subject
    return f"{named.subject}, which is no folder here but may be a repository of the Hub"


def _explain_refusal(cause: BaseException) -> str:
    """Return what to do if the Hub refused permanently, else an empty text."""
    from huggingface_hub import errors  # noqa: PLC0415 - it loads slowly

    # Subclasses first: GatedRepoError is a RepositoryNotFoundError.
    advice: dict[type[Exception], str] = {
        errors.GatedRepoError: "the repository is gated: accept its terms on its page at the Hub,"
        " and set HF_TOKEN to a token of the same account",
        errors.RevisionNotFoundError: "the repository has no such revision: give a branch, a tag"
        " or a commit after the @",
        errors.RepositoryNotFoundError: "the Hub has no such repository, or it is private: check"
        " the name, and set HF_TOKEN to a token that may read it if it is private",
    }
    for kind, text in advice.items():
        if isinstance(cause, kind):
            return text
    if isinstance(cause, errors.HFValidationError):
        return f"this is not a valid repository name: {_first_line(cause)}"
    if not isinstance(cause, errors.HfHubHTTPError):
        return ""
    status = cause.response.status_code
    if status in _DENIED:
        return f"the Hub refused access (HTTP {status}): set HF_TOKEN to a token that may read it"
    if status in _TEMPORARY or status in _SERVER_ERRORS:
        return ""
    return f"the Hub refused the request (HTTP {status})"


def _explain_failure(cause: BaseException) -> str:
    """Return what to do if the Hub answered with a temporary error, else an empty text."""
    from huggingface_hub import errors  # noqa: PLC0415 - it loads slowly

    if not isinstance(cause, errors.HfHubHTTPError):
        return ""
    return f"the Hub answered with HTTP {cause.response.status_code}: try again later"


def _explain_cache(cause: BaseException) -> str:
    """Return what to do if the file system failed, else an empty text."""
    from huggingface_hub import constants  # noqa: PLC0415 - it loads slowly

    if not isinstance(cause, OSError) or not cause.errno or isinstance(cause, ConnectionError):
        return ""
    space = "free some space, or " if cause.errno in _FULL else ""
    return (
        f"the cache {constants.HF_HUB_CACHE} cannot be written: {cause.strerror}: {space}set"
        " HF_HOME to another folder"
    )


def _explain_network(cause: BaseException, named: Named) -> str:
    from huggingface_hub import constants  # noqa: PLC0415 - it loads slowly

    return (
        f"the download from {constants.ENDPOINT} failed ({_first_line(cause)}): check the network"
        f" and HF_ENDPOINT and try again, or {_elsewhere(named)}"
    )


def _elsewhere(named: Named) -> str:
    return f"run `{named.pull}` on a host with network, and copy its cache here"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
