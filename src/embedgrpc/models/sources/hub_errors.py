"""Says in one line what to do about a model that the Hugging Face Hub does not give."""

import errno

from embedgrpc.models.errors import ModelError, ModelUnavailableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({401, 403})
# The client was too slow or asks too often.
_PASSING = frozenset({408, 425, 429})
_SERVER_ERRORS = range(500, 600)


def explain(error: Exception, source: str) -> ModelError:
    """Turns an error of the huggingface_hub library into one line.

    Args:
        error: Of the library, of its HTTP client, or of the file system.
        source: As the user named the model.

    Returns:
        The error to raise; a `ModelUnavailableError` where a later attempt may succeed.
    """
    from huggingface_hub import errors, is_offline_mode  # noqa: PLC0415 - it loads slowly

    # Raised for want of a cached copy; what kept it from being downloaded is the cause.
    not_cached = isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError))
    cause = error.__cause__ if not_cached and error.__cause__ is not None else error
    if is_offline_mode() and (not_cached or isinstance(cause, errors.OfflineModeIsEnabled)):
        return explain_absence(source, "it")
    lasting = _advise_refusal(cause) or _advise_cache(cause)
    if lasting:
        return ModelError(f"{_subject(source)}: {lasting}")
    passing = _advise_failure(cause) or _advise_network(cause, source)
    return ModelUnavailableError(f"{_subject(source)}: {passing}")


def explain_absence(source: str, what: str) -> ModelError:
    """Say that the cache lacks a file, and that it cannot be downloaded now.

    That passes, unless the library is told to stay offline.
    """
    from huggingface_hub import constants, is_offline_mode  # noqa: PLC0415 - it loads slowly

    kind = ModelError if is_offline_mode() else ModelUnavailableError
    return kind(
        f"{_subject(source)}: {what} is not in the cache {constants.HF_HUB_CACHE}: "
        + _elsewhere(source)
    )


def _subject(source: str) -> str:
    if source.startswith("hf:"):
        return f"model source {source!r}"
    return f"model source {source!r}, which is no folder here but may be a repository of the Hub"


def _advise_refusal(cause: BaseException) -> str:
    """What to do where the Hub refused for good; empty where it did not."""
    from huggingface_hub import errors  # noqa: PLC0415 - it loads slowly

    # The narrowest first: the error of a gated repository is also that of a missing one.
    advice: dict[type[Exception], str] = {
        errors.GatedRepoError: "the repository is gated: accept its terms on its page at the Hub,"
        " and set HF_TOKEN to a token of the account that did",
        errors.RevisionNotFoundError: "the repository has no such revision: give a branch, a tag"
        " or a commit after the @",
        errors.RepositoryNotFoundError: "the Hub has no such repository, or does not show it: check"
        " the name, and set HF_TOKEN to a token that may read it where it is private",
    }
    for kind, text in advice.items():
        if isinstance(cause, kind):
            return text
    if isinstance(cause, errors.HFValidationError):
        return f"this cannot be the name of a repository: {_first_line(cause)}"
    if not isinstance(cause, errors.HfHubHTTPError):
        return ""
    status = cause.response.status_code
    if status in _DENIED:
        return f"the Hub refused access (HTTP {status}): set HF_TOKEN to a token that may read it"
    if status in _PASSING or status in _SERVER_ERRORS:
        return ""
    return f"the Hub refused the request (HTTP {status})"


def _advise_failure(cause: BaseException) -> str:
    """What to do where the Hub answered that it cannot now; empty where it did not answer."""
    from huggingface_hub import errors  # noqa: PLC0415 - it loads slowly

    if not isinstance(cause, errors.HfHubHTTPError):
        return ""
    return f"the Hub answered with HTTP {cause.response.status_code}: try again later"


def _advise_cache(cause: BaseException) -> str:
    """What to do where the file system failed; empty where something else did."""
    from huggingface_hub import constants  # noqa: PLC0415 - it loads slowly

    if not isinstance(cause, OSError) or not cause.errno or isinstance(cause, ConnectionError):
        return ""
    space = "free some space, or " if cause.errno in _FULL else ""
    return (
        f"the cache {constants.HF_HUB_CACHE} cannot be written: {cause.strerror}: {space}set"
        " HF_HOME to another folder"
    )


def _advise_network(cause: BaseException, source: str) -> str:
    from huggingface_hub import constants  # noqa: PLC0415 - it loads slowly

    return (
        f"the download from {constants.ENDPOINT} failed ({_first_line(cause)}): check the network"
        f" and HF_ENDPOINT and try again, or {_elsewhere(source)}"
    )


def _elsewhere(source: str) -> str:
    return f"run `embedgrpc pull {source}` on a host with network, and copy its cache here"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
