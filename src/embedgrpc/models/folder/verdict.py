"""What is done with one key of a file."""

from collections.abc import Iterator
from dataclasses import dataclass

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.known_keys import Keys, Use


@dataclass(frozen=True, slots=True)
class KeyVerdict:
    """What is done with one key of a file.

    Attributes:
        config: The file.
        key: The key.
        use: What is done with it.
        advice: What to do if it is refused, or why it is not known.
    """

    config: JsonObject
    key: str
    use: Use
    advice: str = ""


def judge(config: JsonObject, keys: Keys) -> Iterator[KeyVerdict]:
    """Yield what is done with each key of a file; null values count as absent."""
    for key, value in config.values.items():
        if value is None:
            continue
        use = keys.use_of(key)
        if use is Use.REFUSED and not value:
            use = Use.HARMLESS
        yield KeyVerdict(config, key, use, keys.refused.get(key, ""))
