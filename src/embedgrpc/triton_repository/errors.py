"""The error of writing a model repository."""


class RepositoryError(Exception):
    """A model cannot be written to the repository; one line says what to change."""
