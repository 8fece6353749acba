"""Renders the chat template of a cross-encoder into the texts around a query and a document.

sentence-transformers renders each pair through the template and tokenizes the result. Here the
template is rendered once. The query and the document are then tokenized with the text around them,
so that tokens which join a text and the template are those of the reference. The text between both
is split where no token can join its parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import tokenizers

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tokenizers.chat_template import ChatTemplate, Render, compile_template, refuse
from embedgrpc.models.tokenizers.cut_points import describe_steps, find_cut_points

# From the private use areas, so that no template contains them.
_QUERY, _DOCUMENT, _INSTRUCTION = "\ue0f1", "\ue0f2", "\ue0f3"
# Contents that show whether a template changes them, and tokens that join them with the template.
_PROBES = (
    "a", "the words", " blanks ", "end.", "end?\n", "line\n\n", "tab\t", "\n", "<b> & 'q' \"d\"",
    "{{ x }} {% y %}", "42", "\u4e2d\u56fd", "caf\u00e9", "e\u0301", "\\n", "a:", "...", "don't",
)  # fmt: skip

_SPACE = {"String": " "}
_SPACES_SHOWN = {"type": "Replace", "pattern": _SPACE, "content": "\u2581"}


@dataclass(frozen=True, slots=True)
class PairTexts:
    """The texts of a template around a query and a document.

    Attributes:
        query: Before and after the query.
        document: Before and after the document.
        suffix: The ids at the end, which truncation keeps.
        document_start: The number of tokens before the document.
        instructed: Before an instruction, between it and the query, and after the query; None if
            the template has no place for an instruction in front of the query.
    """

    query: tuple[str, str]
    document: tuple[str, str]
    suffix: tuple[int, ...]
    document_start: int
    instructed: tuple[str, str, str] | None = None

    def around_query(self, text: str, instruction: str = "") -> str:
        """Return a query with the texts around it.

        Args:
            text: The query.
            instruction: What relevance means, in words; empty for what the template says.

        Raises:
            ValueError: The template has no place for an instruction.
        """
        if not instruction:
            return self.query[0] + text + self.query[1]
        if self.instructed is None:
            raise ValueError("the template has no place for an instruction")
        before, between, after = self.instructed
        return before + instruction + between + text + after

    def around_document(self, text: str) -> str:
        """Return a document with the texts around it."""
        return self.document[0] + text + self.document[1]


def render_pair_texts(
    template: ChatTemplate, tokenizer: tokenizers.Tokenizer, roles: Mapping[str, str]
) -> PairTexts:
    """Render a template once.

    Args:
        template: The template.
        tokenizer: The model's tokenizer.
        roles: The special tokens by role, which a template may name.

    Raises:
        ModelError: The template fails, or is not text around a query and then a document.
    """
    render = compile_template(template, roles)
    before, middle, after = _render_marks(template, render)
    instructed = _find_instructed(render, middle + _DOCUMENT + after)
    probes = list(zip(_PROBES, (*_PROBES[1:], _PROBES[0]), strict=True))
    for split in _splits(middle, tokenizer):
        head, tail = middle[:split], middle[split:]
        texts = PairTexts(
            (before, head),
            (tail, after),
            suffix=_find_suffix(tokenizer, render),
            # A blank at the end of the template may be part of a document's first token.
            document_start=_count_shared(_ids(tokenizer, tail + "a"), _ids(tokenizer, tail + "0")),
            instructed=None if instructed is None else (*instructed, head),
        )
        if all(
            _joins(tokenizer, texts.around_query(query), texts.around_document(document))
            for query, document in probes
        ):
            return texts
    raise refuse(template, "has no place between query and document where tokens always end")


def _render_marks(template: ChatTemplate, render: Render) -> tuple[str, str, str]:
    """Return the texts before, between and after query and document, without an instruction."""
    whole = render(_QUERY, _DOCUMENT, "")
    before, _, rest = whole.partition(_QUERY)
    middle, _, after = rest.partition(_DOCUMENT)
    if (
        before + _QUERY + middle + _DOCUMENT + after != whole
        or _DOCUMENT in before
        or any(mark in middle + after for mark in (_QUERY, _DOCUMENT))
    ):
        raise refuse(template, "does not write the query and then the document, once each")
    for query, document in zip(_PROBES, (*_PROBES[1:], _PROBES[0]), strict=True):
        if render(query, document, "") != before + query + middle + document + after:
            raise refuse(template, "changes the texts")
    return before, middle, after


def _find_instructed(render: Render, rest: str) -> tuple[str, str] | None:
    """Return the texts before an instruction, and between it and the query.

    Args:
        render: The template.
        rest: What the template writes after a query when there is no instruction.

    Returns:
        None if the template has no place for an instruction, changes it, or has it elsewhere.
    """
    try:
        whole = render(_QUERY, _DOCUMENT, _INSTRUCTION)
        before, _, after = whole.partition(_INSTRUCTION)
        between, _, found = after.partition(_QUERY)
        unchanged = all(
            render(_QUERY, _DOCUMENT, one) == before + one + between + _QUERY + rest
            for one in _PROBES
        )
    except ModelError:
        return None
    return (before, between) if unchanged and found == rest else None


def _splits(middle: str, tokenizer: tokenizers.Tokenizer) -> Iterator[int]:
    """Yield the places where no token can join both parts, wherever texts end."""
    added = tokenizer.get_added_tokens_decoder().values()
    for token in added:
        if token.normalized or token.single_word or not token.content.strip():
            continue
        place = middle.find(token.content)
        if place >= 0 and not token.lstrip:
            yield place
        if place >= 0 and not token.rstrip:
            yield place + len(token.content)
    if find_cut_points(tokenizer) is not None or _ends_tokens_at_newlines(tokenizer):
        for place in range(1, len(middle)):
            if middle[place - 1] == "\n" and not middle[place].isspace():
                yield place


def _ends_tokens_at_newlines(tokenizer: tokenizers.Tokenizer) -> bool:
    """Return whether no token goes on after a newline with anything but newlines.

    It holds for the tokenizers of Gemma and others that merge pairs in whole texts: a merge makes
    an entry of the vocabulary, and no entry has a newline before another character.
    """
    normalizers = describe_steps(tokenizer.normalizer, "normalizers")
    splitters = describe_steps(tokenizer.pre_tokenizer, "pretokenizers")
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return (
        isinstance(tokenizer.model, tokenizers.models.BPE)
        # Each piece stays what it is wherever it stands: a space becomes a visible character.
        and all(step == _SPACES_SHOWN for step in normalizers)
        and all(step.get("type") == "Split" and step["pattern"] == _SPACE for step in splitters)
        and not any("\n" in token.rstrip("\n") for token in (*tokenizer.get_vocab(), *added))
    )


def _joins(tokenizer: tokenizers.Tokenizer, first: str, second: str) -> bool:
    """Return whether two texts have the same tokens apart and joined."""
    parts = [*_ids(tokenizer, first), *_ids(tokenizer, second)]
    return list(_ids(tokenizer, first + second)) == parts


def _find_suffix(tokenizer: tokenizers.Tokenizer, render: Render) -> tuple[int, ...]:
    """Return the ids that end every rendered pair.

    Source: `Transformer._chat_template_suffix_ids` of sentence-transformers.
    """
    first, second = (_ids(tokenizer, render(text, text, "")) for text in ("0", "1 2 3 4"))
    shared = _count_shared(first[::-1], second[::-1])
    return tuple(first[len(first) - shared :]) if shared < min(len(first), len(second)) else ()


def _count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids at the start are the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
