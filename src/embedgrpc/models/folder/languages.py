"""Reads which languages a model's card names.

Source: https://huggingface.co/docs/hub/model-cards, the key `language` of the front matter.
"""

import re
from pathlib import Path

import yaml

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import read_file
from embedgrpc.models.sources.config_files import CARD_BYTES_MAX, CARD_NAME

_FRONT_MATTER = re.compile(rb"---\r?\n(.{0,65536}?)\r?\n---\s", re.DOTALL)
_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_LANGUAGES_MAX = 256


def read_languages(folder: Path) -> tuple[str, ...]:
    """Return the languages that a model's card names, as BCP 47 tags; empty for none.

    The card is prose, and nothing else depends on it: one that cannot be read names none.
    """
    try:
        card = read_file(folder / CARD_NAME, folder, limit_bytes=CARD_BYTES_MAX)
    except (ModelError, OSError):
        return ()
    front = _FRONT_MATTER.match(card)
    if front is None:
        return ()
    try:
        values = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return ()
    named = values.get("language") if isinstance(values, dict) else None
    tags = [named] if isinstance(named, str) else named
    if not isinstance(tags, list):
        return ()
    # "no" is a language, and false to YAML.
    tags = ["no" if tag is False else tag for tag in tags[:_LANGUAGES_MAX]]
    return tuple(tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag))
