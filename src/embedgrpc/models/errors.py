"""What can be wrong with a model."""


class ModelError(Exception):
    """A model cannot be served.

    The message is one line that names the file and the key, and says what to change.
    """
