"""What is found out about tokenizers, kept: servers of tests load the same few again and again."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import tokenizers

from embedgrpc.models.tokenizers import tokenizer as loading
from embedgrpc.models.tokenizers.blanks import collapses_blanks
from embedgrpc.models.tokenizers.cut_points import find_cut_points

_found: dict[tuple[object, bytes, bool], Any] = {}


@contextmanager
def probing_once() -> Iterator[None]:
    """Try out each tokenizer once. It takes most of the start of a small model."""
    with (
        patch.object(loading, "find_cut_points", partial(_once, find_cut_points)),
        patch.object(loading, "collapses_blanks", partial(_once, collapses_blanks)),
    ):
        yield


def _once(probe: Callable[[tokenizers.Tokenizer], Any], tokenizer: tokenizers.Tokenizer) -> Any:
    """Return what is known about a tokenizer, or find it out."""
    digest = hashlib.sha256(tokenizer.to_str().encode()).digest()
    key = probe, digest, tokenizer.encode_special_tokens
    if key not in _found:
        _found[key] = probe(tokenizer)
    return _found[key]
