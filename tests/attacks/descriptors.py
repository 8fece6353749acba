"""Lets this process open as many files as the system allows."""

import resource


def allow_descriptors() -> None:
    """Raise the limit of open files to the most that is possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
