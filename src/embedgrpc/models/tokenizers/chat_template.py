"""Reads the chat template of a cross-encoder and compiles it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import read_file
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.kinds import Kind
from embedgrpc.models.tokenizers.published_templates import PUBLISHED_TEMPLATES

_FILE = "chat_template.jinja"
# Real templates have up to 10,000 characters.
_CHARACTERS_MAX = 100_000
_RENDERED_CHARACTERS_MAX = 100_000
# Templates with one of these want the content as a list of parts.
_SIGNS_OF_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
_FLAT_MODEL_TYPES = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})

# From the contents of query, document and instruction to the rendered text; the instruction is
# empty for none.
Render = Callable[[str, str, str], str]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template as its file has it.

    Attributes:
        text: In the language of Jinja.
        has_parts: Whether the content of a message is a list of parts.
        file: The file that has it, for messages.
        key: The key in this file.
        variables: Further variables for the template.
    """

    text: str
    has_parts: bool
    file: JsonObject
    key: str
    variables: Mapping[str, Any] = field(default_factory=dict)


def read_chat_template(properties: ModelProperties) -> ChatTemplate | None:
    """Return the template through which the reference renders inputs, if it does.

    Raises:
        ModelError: The files cannot be read, or the model is not a cross-encoder.

    Source: `Transformer.infer_modalities` of sentence-transformers.
    """
    folder, root = properties.transformer_folder, properties.folder
    settings = JsonObject.read_if_present(folder / "sentence_bert_config.json", root)
    if properties.pair_template is not None:
        published = PUBLISHED_TEMPLATES[properties.pair_template]
        config = JsonObject(folder / "config.json", {})
        return ChatTemplate(published, has_parts=False, file=config, key="pair_template")
    modalities = settings.table("modality_config")
    message = modalities.get("message")
    if modalities and message is None:
        return None
    crosses = properties.kind is Kind.CROSS_ENCODER
    has_modules = (root / "modules.json").exists()
    if message is None and (not crosses or has_modules):
        return None
    file, key, text = _find_text(properties)
    if text is None and properties.logit_score is not None and not has_modules:
        raise ModelError(
            f"{folder / _FILE} is missing: a causal reranker needs a chat template for a query and "
            "a document; or set pair_template for this model in the configuration"
        )
    if text is None and message is None:
        return None
    if text is None:
        raise ModelError(f"{settings.path}: modality_config has message, but there is no template")
    if not crosses:
        raise ModelError(
            f"{settings.path}: modality_config.message is only supported for cross-encoders"
        )
    if len(text) > _CHARACTERS_MAX:
        raise file.wrong(key, f"at most {_CHARACTERS_MAX} characters long")
    form = message.get("format", "auto") if isinstance(message, dict) else "auto"
    if form not in ("auto", "flat", "structured"):
        raise settings.wrong("modality_config.message.format", "auto, flat or structured")
    guessed = properties.model_type not in _FLAT_MODEL_TYPES and any(
        sign in text for sign in _SIGNS_OF_PARTS
    )
    arguments = JsonObject(settings.path, settings.table("processing_kwargs"))
    variables = {
        name: value
        for name, value in arguments.table("chat_template").items()
        if name != "restore_suffix"
    }
    return ChatTemplate(
        text,
        has_parts=guessed if form == "auto" else form == "structured",
        file=file,
        key=key,
        variables=variables,
    )


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


def compile_template(template: ChatTemplate, roles: Mapping[str, str]) -> Render:
    """Return the template as a function.

    Args:
        template: The template.
        roles: The special tokens by role, which a template may name.

    Raises:
        ModelError: The template cannot be read; the function raises it where rendering fails.

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
        raise refuse(template, f"cannot be read: {error}") from error

    variables: dict[str, Any] = {"add_generation_prompt": False, **template.variables, **roles}

    def render(query: str, document: str, instruction: str) -> str:
        messages = [{"role": "system", "content": content(instruction)}] if instruction else []
        messages += [
            {"role": "query", "content": content(query)},
            {"role": "document", "content": content(document)},
        ]
        pieces: list[str] = []
        room = _RENDERED_CHARACTERS_MAX
        try:
            for piece in compiled.generate(
                messages=messages, tools=None, documents=None, **variables
            ):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    break
        except Exception as error:
            # The template is code, which may raise anything.
            raise refuse(template, f"cannot be rendered: {error}") from error
        if room < 0:
            raise refuse(template, f"writes over {_RENDERED_CHARACTERS_MAX} characters")
        return "".join(pieces)

    return render


def refuse(template: ChatTemplate, fault: str) -> ModelError:
    """Return the error for a template that cannot be used."""
    return ModelError(f"{template.file.path}: {template.key} is not supported: it {fault}")
