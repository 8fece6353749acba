"""Why a model repository cannot be written."""


class RepositoryError(Exception):
    """A model cannot be put into the repository as asked; one line that says what to change."""
