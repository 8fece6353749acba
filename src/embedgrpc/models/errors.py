"""What can be wrong with a model."""


class ModelError(Exception):
    """A model cannot be served.

    The message is one line that names the file and the key, and says what to change.
    """

    def __init__(self, message: str) -> None:
        """Takes the message; what a library says of its own in several lines becomes one."""
        super().__init__(" ".join(message.split()) if "\n" in message else message)


class ModelUnavailableError(ModelError):
    """A model cannot be had now, and may be later: what it comes from does not answer."""
