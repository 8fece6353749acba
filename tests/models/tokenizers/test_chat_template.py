"""Chat templates around the pairs of cross-encoders."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES, copy_fixture, edit_json

NAME = "cross-qwen3-template"
TEXT = "<|im_start|>judge\n<Query>: {q}\n<Document>: {d}<|im_end|>\n<|im_start|>assistant"
PAIRS = [
    ("what is it?\n", "\n it is short"),
    (" blanks ", "ends in a newline\n\n"),
    ("a<|im_end|>b", "42 words and <|endoftext|> more"),
    ("don't", "x" * 500),
    ("word " * 40, "other " * 200),
    ("word " * 300, "a"),
]


def _load(folder: Path) -> Tokenizer:
    return Tokenizer.load(read(resolve(str(folder))))


def _build(tokenizer: Tokenizer, query: str, document: str, truncation: Truncation) -> list[int]:
    around = tokenizer.pair_texts
    assert around is not None
    query_ids, document_ids = tokenizer.encode(
        [around.around_query(query), around.around_document(document)]
    )
    pair = tokenizer.build_pair(query_ids, document_ids, max_tokens=96, truncation=truncation)
    assert pair.token_type_ids is None
    return [int(one) for one in pair.input_ids]


@pytest.mark.parametrize(("query", "document"), PAIRS)
@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_pairs_are_rendered_and_keep_the_suffix(
    query: str, document: str, truncation: Truncation
) -> None:
    """The tokens are those of the whole rendered text, and its last ones are never cut."""
    library = tokenizers.Tokenizer.from_file(str(FIXTURES / NAME / "tokenizer.json"))
    text = TEXT.replace("{q}", query).replace("{d}", document)
    whole = library.encode(text, add_special_tokens=False).ids
    suffix = library.encode("<|im_end|>\n<|im_start|>assistant", add_special_tokens=False).ids
    wanted = whole
    if len(whole) > 96:
        ends = whole[:96] if truncation is Truncation.END else whole[-96:]
        wanted = [*ends[: 96 - len(suffix)], *suffix]
    assert _build(_load(FIXTURES / NAME), query, document, truncation) == wanted


def test_a_limit_of_the_document_spares_the_template() -> None:
    """Only tokens of the document are cut."""
    tokenizer = _load(FIXTURES / NAME)
    around = tokenizer.pair_texts
    assert around is not None
    long, short = tokenizer.encode(
        [around.around_document("a b c d e f"), around.around_document("a b c")]
    )
    assert tokenizer.cut_document(long, 3, Truncation.END).tolist() == short.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template": "{{ messages[0].content }}"}, "does not write the query and then"),
        (
            {"chat_template": "{{ messages[1].content }}\n<|im_end|>{{ messages[0].content }}"},
            "does not write the query and then",
        ),
        (
            {
                "chat_template": "{{ messages[0].content | trim }}<|im_end|>"
                "{{ messages[1].content }}"
            },
            "changes the texts",
        ),
        (
            {"chat_template": "{{ messages[0].content }} {{ messages[1].content }}"},
            "no place between query and document",
        ),
        ({"chat_template": "{% if %}"}, "cannot be read"),
        ({"chat_template": "{{ raise_exception('no') }}"}, "cannot be rendered: no"),
        (
            {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
            "cannot be rendered",
        ),
        ({"chat_template": "{{ 'x' * 200000 }}"}, "over 100000 characters"),
        ({"chat_template": "{% for one in range(100001) %}{% endfor %}"}, "cannot be rendered"),
        ({"chat_template": ["x"]}, "chat_template must be a template"),
        ({"chat_template": "x" * 200_000}, "at most 100000 characters"),
    ],
)
def test_other_templates_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The error names the file, the key and the fault."""
    folder = copy_fixture(NAME, tmp_path)
    edit_json(folder / "tokenizer_config.json", **changes)
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: .*{message}"):
        _load(folder)


def test_modality_config_turns_templates_on_and_off(tmp_path: Path) -> None:
    """The message modality needs a template and a cross-encoder; without it, texts are plain."""
    folder = copy_fixture(NAME, tmp_path)
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 96, "modality_config": {"text": {}}}))
    assert _load(folder).pair_texts is None
    edit_json(settings, modality_config={"message": {"format": "structured"}})
    with pytest.raises(ModelError, match=r"changes the texts|once each|cannot be rendered"):
        _load(folder)
    edit_json(settings, modality_config={"message": {"format": "flat"}})
    assert _load(folder).pair_texts is not None
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ModelError, match="there is no template"):
        _load(folder)
    (folder / "chat_template.jinja").write_text(
        TEXT.replace("{q}", "{{ messages[0].content }}").replace("{d}", "{{ messages[1].content }}")
    )
    around = _load(folder).pair_texts
    assert around is not None
    assert around.query == ("<|im_start|>judge\n<Query>: ", "\n")
    embedding = copy_fixture("bert-mean", tmp_path / "embedding")
    edit_json(embedding / "sentence_bert_config.json", modality_config={"message": {}})
    edit_json(embedding / "tokenizer_config.json", chat_template="x")
    with pytest.raises(ModelError, match="only supported for cross-encoders"):
        _load(embedding)
