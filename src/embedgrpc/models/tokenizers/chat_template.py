"""Renders the chat template of a cross-encoder into the texts around a query and a document.

sentence-transformers renders each pair through the template and tokenizes the result. Here the
template is rendered once. The query and the document are then tokenized with the text around them,
so that tokens which join a text and the template are those of the reference. The text between both
is split where no token can join its parts.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import read_file
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Kind
from embedgrpc.models.tokenizers.cut_points import find_cut_points

_FILE = "chat_template.jinja"
# Real templates have up to 10,000 characters.
_CHARACTERS_MAX = 100_000
_RENDERED_CHARACTERS_MAX = 100_000
# Templates with one of these want the content as a list of parts.
_SIGNS_OF_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
_FLAT_MODEL_TYPES = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})
# From the private use areas, so that no template contains them.
_QUERY, _DOCUMENT = "\ue0f1", "\ue0f2"
# Contents that show whether a template changes them, and tokens that join them with the template.
_PROBES = (
    "a", "the words", " blanks ", "end.", "end?\n", "line\n\n", "tab\t", "\n", "<b> & 'q' \"d\"",
    "{{ x }} {% y %}", "42", "\u4e2d\u56fd", "caf\u00e9", "e\u0301", "\\n", "a:", "...", "don't",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template as its file has it.

    Attributes:
        text: In the language of Jinja.
        has_parts: Whether the content of a message is a list of parts.
        file: The file that has it, for messages.
        key: The key in this file.
    """

    text: str
    has_parts: bool
    file: JsonObject
    key: str


@dataclass(frozen=True, slots=True)
class PairTexts:
    """The texts of a template around a query and a document.

    Attributes:
        query: Before and after the query.
        document: Before and after the document.
        suffix: The ids at the end, which truncation keeps.
        document_start: The number of tokens before the document.
    """

    query: tuple[str, str]
    document: tuple[str, str]
    suffix: tuple[int, ...]
    document_start: int

    def around_query(self, text: str) -> str:
        """Return a query with the texts around it."""
        return self.query[0] + text + self.query[1]

    def around_document(self, text: str) -> str:
        """Return a document with the texts around it."""
        return self.document[0] + text + self.document[1]


def read_chat_template(properties: ModelProperties) -> ChatTemplate | None:
    """Return the template through which the reference renders inputs, if it does.

    Raises:
        ModelError: The files cannot be read, or the model is not a cross-encoder.

    Source: `Transformer.infer_modalities` of sentence-transformers.
    """
    folder, root = properties.transformer_folder, properties.folder
    settings = JsonObject.read_if_present(folder / "sentence_bert_config.json", root)
    modalities = settings.table("modality_config")
    message = modalities.get("message")
    if modalities and message is None:
        return None
    crosses = properties.kind is Kind.CROSS_ENCODER
    if message is None and (not crosses or (root / "modules.json").exists()):
        return None
    file, key, text = _find_text(properties)
    if text is None and message is None:
        return None
    if text is None:
        raise ModelError(f"{settings.path}: modality_config has message, but there is no template")
    if not crosses:
        raise ModelError(
            f"{settings.path}: modality_config.message is only supported for cross-encoders"
        )
    if properties.prompts:
        raise ModelError(f"{file.path}: {key} is not supported for a model with prompts")
    if len(text) > _CHARACTERS_MAX:
        raise file.wrong(key, f"at most {_CHARACTERS_MAX} characters long")
    form = message.get("format", "auto") if isinstance(message, dict) else "auto"
    if form not in ("auto", "flat", "structured"):
        raise settings.wrong("modality_config.message.format", "auto, flat or structured")
    guessed = properties.model_type not in _FLAT_MODEL_TYPES and any(
        sign in text for sign in _SIGNS_OF_PARTS
    )
    return ChatTemplate(text, guessed if form == "auto" else form == "structured", file, key)


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
    render = _compile(template, roles)
    whole = render(_QUERY, _DOCUMENT)
    before, _, rest = whole.partition(_QUERY)
    middle, _, after = rest.partition(_DOCUMENT)
    if (
        before + _QUERY + middle + _DOCUMENT + after != whole
        or _DOCUMENT in before
        or any(mark in middle + after for mark in (_QUERY, _DOCUMENT))
    ):
        raise _refuse(template, "does not write the query and then the document, once each")
    probes = list(zip(_PROBES, (*_PROBES[1:], _PROBES[0]), strict=True))
    for query, document in probes:
        if render(query, document) != before + query + middle + document + after:
            raise _refuse(template, "changes the texts")
    for split in _splits(middle, tokenizer):
        texts = (before, middle[:split]), (middle[split:], after)
        if all(_joins(tokenizer, texts, query, document) for query, document in probes):
            return PairTexts(
                *texts,
                suffix=_find_suffix(tokenizer, render),
                # A blank at the end of the template may be part of a document's first token.
                document_start=_count_shared(
                    _ids(tokenizer, middle[split:] + "a"), _ids(tokenizer, middle[split:] + "0")
                ),
            )
    raise _refuse(template, "has no place between query and document where tokens always end")


def _find_text(properties: ModelProperties) -> tuple[JsonObject, str, str | None]:
    folder, root = properties.transformer_folder, properties.folder
    config = JsonObject.read_if_present(folder / "tokenizer_config.json", root)
    path = folder / _FILE
    if path.exists():
        content = read_file(path, root, limit_bytes=4 * _CHARACTERS_MAX)
        return JsonObject(path, {}), "the template", content.decode("utf-8", "replace")
    found = config.values.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
        if found is None:
            raise config.wrong("chat_template", "a template, or have one called default")
    if found is not None and not isinstance(found, str):
        raise config.wrong("chat_template", "a template")
    return config, "chat_template", found


def _compile(template: ChatTemplate, roles: Mapping[str, str]) -> Callable[[str, str], str]:
    """Return the template as a function of query and document.

    Source: `_cached_compile_jinja_template` of transformers.
    """

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = fail

    def content(text: str) -> object:
        return [{"type": "text", "text": text}] if template.has_parts else text

    try:
        compiled = environment.from_string(template.text)
    except (TemplateError, RecursionError) as error:
        raise _refuse(template, f"cannot be read: {error}") from error

    def render(query: str, document: str) -> str:
        messages = [
            {"role": "query", "content": content(query)},
            {"role": "document", "content": content(document)},
        ]
        pieces: list[str] = []
        room = _RENDERED_CHARACTERS_MAX
        try:
            for piece in compiled.generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=False, **roles
            ):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    break
        except Exception as error:
            # The template is code, which may raise anything.
            raise _refuse(template, f"cannot be rendered: {error}") from error
        if room < 0:
            raise _refuse(template, f"writes over {_RENDERED_CHARACTERS_MAX} characters")
        return "".join(pieces)

    return render


def _refuse(template: ChatTemplate, fault: str) -> ModelError:
    return ModelError(f"{template.file.path}: {template.key} is not supported: it {fault}")


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
    if find_cut_points(tokenizer) is not None:
        for place in range(1, len(middle)):
            if middle[place - 1] == "\n" and not middle[place].isspace():
                yield place


def _joins(
    tokenizer: tokenizers.Tokenizer,
    texts: tuple[tuple[str, str], tuple[str, str]],
    query: str,
    document: str,
) -> bool:
    first = texts[0][0] + query + texts[0][1]
    second = texts[1][0] + document + texts[1][1]
    parts = [*_ids(tokenizer, first), *_ids(tokenizer, second)]
    return list(_ids(tokenizer, first + second)) == parts


def _find_suffix(
    tokenizer: tokenizers.Tokenizer, render: Callable[[str, str], str]
) -> tuple[int, ...]:
    """Return the ids that end every rendered pair.

    Source: `Transformer._chat_template_suffix_ids` of sentence-transformers.
    """
    first, second = (_ids(tokenizer, render(text, text)) for text in ("0", "1 2 3 4"))
    shared = _count_shared(first[::-1], second[::-1])
    return tuple(first[len(first) - shared :]) if shared < min(len(first), len(second)) else ()


def _count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids at the start are the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
