"""Reads the MultiVectorMask module, which says which tokens of a text are compared."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.kinds import TextRole

# Real models skip the 32 ASCII characters of punctuation.
_WORDS_MAX = 1024


@dataclass(frozen=True, slots=True)
class MultiVectorMask:
    """Which tokens have no vector in the result.

    Attributes:
        words: Tokens, as the vocabulary spells them.
        roles: The roles of the texts in which they are skipped.

    Source: sentence-transformers `MultiVectorMask`.
    """

    words: tuple[str, ...]
    roles: tuple[TextRole, ...] = (TextRole.DOCUMENT,)

    @classmethod
    def read(cls, path: Path, root: Path) -> "MultiVectorMask":
        """Read the module's `config.json`.

        Raises:
            ModelError: A value is wrong or not supported.
        """
        config = JsonObject.read_if_present(path, root)
        if config.values.get("keep_only_token_ids"):
            raise config.wrong("keep_only_token_ids", "null: texts have no image tokens")
        words = read_words(config, "skiplist_words") or ()
        roles = config.values.get("skiplist_tasks")
        if roles is None:
            return cls(words)
        names = [roles] if isinstance(roles, str) else roles
        known = list(TextRole)
        if not isinstance(names, list) or not all(name in known for name in names):
            raise config.wrong("skiplist_tasks", "a list of " + " and ".join(known))
        return cls(words, tuple(role for role in TextRole if role in names))


def read_words(config: JsonObject, key: str) -> tuple[str, ...] | None:
    """Return a list of tokens; None without one.

    Raises:
        ModelError: The key holds something else, or too many of them.
    """
    words = config.values.get(key)
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise config.wrong(key, "a list of tokens")
    if len(words) > _WORDS_MAX:
        raise config.wrong(key, f"at most {_WORDS_MAX} tokens, not {len(words)}")
    return tuple(words)
