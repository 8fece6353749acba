"""The errors of models that cannot be served."""


class ModelError(Exception):
    """A model cannot be served.

    The message is one line that names the file and the key, and says what to change. Line breaks
    from a library's own message become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()) if "\n" in message else message)


class ModelUnavailableError(ModelError):
    """A model cannot be loaded now, because its source does not answer. A retry may succeed."""
