"""Texts of many kinds for comparing two ways to run a model."""

from collections.abc import Sequence
from pathlib import Path

from embedgrpc.models.errors import ModelError

_SENTENCES = (
    "The tower is 330 metres tall.",
    "It was the tallest structure in the world for 41 years.",
    "a",
    "?",
    "Rivers flow to the sea",
    "  blanks at both ends  ",
    "blanks and newlines at the end \n\n",
    "[CLS] [MASK] [SEP] <s> <mask> </s> <|im_end|> <extra_id_0>",
    "line one\nline two\ttabbed\r\nline three",
    "UPPER CASE, lower case, MiXeD cAsE",
    "don't, can't, won't: it's \u201cquoted\u201d \u2013 and \u2026 dashed",
    "3.14159 x 10^-6 = 0.00000314159; 1,000,000; 50 %",
    "https://example.com/path?query=1&other=two#fragment",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)",
    "Der Fluss fließt über die Grenze, größer als früher.",
    "Où est la bibliothèque ? Ça dépend de l'été.",
    "¿Cuántos años tiene la catedral? ¡Muchísimos!",
    "Москва не сразу строилась.",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
    "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\u3002",
    "\u0627\u0644\u0642\u0627\u0647\u0631\u0629 \u0639\u0627\u0635\u0645\u0629 \u0645\u0635\u0631.",
    "\u0928\u0908 \u0926\u093f\u0932\u094d\u0932\u0940",
    "e\u0301 and \u00e9 look alike",
    "\U0001f680 to the \U0001f319 and back \U0001f469\u200d\U0001f52c",
)
_NAMES_MAX = 16
_BLANKS_MIN = 20_000
_WORDS = "a long text goes on and on about towers rivers and the sea until it has to be cut "
_WORDS_COUNT = 18


def sample_texts(
    max_tokens: int, names: Sequence[str] = (), *, max_characters: int = 0
) -> list[str]:
    """Return texts, short and long, in several scripts; three exceed the model's limit.

    Args:
        max_tokens: The model's limit.
        names: The added tokens of the model. Each of the first 16 is in a text.
        max_characters: Most characters of a text. One text has more blanks in a row.
    """
    long = _WORDS * (max_tokens // _WORDS_COUNT + 2)
    marked = [f"{name}the river {name} and{name}sea {name}" for name in names[:_NAMES_MAX]]
    ends = f"Once upon a time, a dragon slept. {long}At dawn, 7 knights rode home."
    blanks = f"River{' ' * max(max_characters, _BLANKS_MIN)}Sea."
    return [*_SENTENCES, *marked, long, "Towers. " * (max_tokens + 1), ends, blanks]


def read_texts(path: Path) -> list[str]:
    """Read texts, one a line, without empty lines.

    Raises:
        ModelError: The file cannot be read, is not UTF-8, or holds no text.
    """
    try:
        texts = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ModelError(f"texts {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"texts {path} are not UTF-8") from error
    if not texts:
        raise ModelError(f"texts {path}: the file holds no text")
    return texts


def pair_up(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of query and document: each text with the next one."""
    return list(zip(texts, [*texts[1:], *texts[:1]], strict=True))
