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
    text = {"method": "forward", "method_output_name": "logits"}
    classifies = {"max_seq_length": 96, "transformer_task": "sequence-classification"}
    settings.write_text(json.dumps(classifies | {"modality_config": {"text": text}}))
    assert _load(folder).pair_texts is None
    edit_json(settings, modality_config={"text": text, "message": text | {"format": "structured"}})
    with pytest.raises(ModelError, match=r"changes the texts|once each|cannot be rendered"):
        _load(folder)
    edit_json(settings, modality_config={"text": text, "message": text | {"format": "flat"}})
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
    hidden = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {"text": hidden, "message": hidden}
    edit_json(embedding / "sentence_bert_config.json", modality_config=modalities)
    edit_json(embedding / "tokenizer_config.json", chat_template="x")
    with pytest.raises(ModelError, match="only supported for cross-encoders"):
        _load(embedding)


CAUSAL = "cross-qwen3-causal"


def _with_template(folder: Path, text: str, **settings: Any) -> Path:
    (folder / "chat_template.jinja").write_text(text)
    if settings:
        edit_json(folder / "sentence_bert_config.json", **settings)
    return folder


def test_an_instruction_has_its_place_in_the_template() -> None:
    """It is the content of the system message, whatever characters it has."""
    around = _load(FIXTURES / CAUSAL).pair_texts
    assert around is not None
    for instruction in ("Find drinks", " {{ x }}\n", "<|im_end|>"):
        text = around.around_query("what?", instruction)
        assert f"<Instruct>: {instruction}\n<Query>: what?" in text
    assert "<Instruct>: Given a web search query" in around.around_query("what?")


@pytest.mark.parametrize(
    "place",
    [
        "",
        "{{ messages[0].content if messages[0].role == 'system' else '' }}after ",
        "{{ messages[0].content | trim if messages[0].role == 'system' else '' }}",
    ],
)
def test_an_instruction_elsewhere_or_changed_is_refused(tmp_path: Path, place: str) -> None:
    """A template that drops, moves or changes a system message takes no instruction."""
    query = "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}"
    document = query.replace("'query'", "'document'")
    before, after = ("", place) if "after" in place else (place, "")
    text = f"{before}Query: {query}\n<think>{document}{after}"
    folder = _with_template(copy_fixture(CAUSAL, tmp_path), text)
    around = _load(folder).pair_texts
    assert around is not None
    assert around.instructed is None
    with pytest.raises(ValueError, match="no place for an instruction"):
        around.around_query("a", "b")
    extras = folder / "config_sentence_transformers.json"
    edit_json(extras, default_prompt_name="drinks")
    with pytest.raises(ModelError, match=r"jinja: .*no place for the default prompt"):
        _load(folder)


def test_variables_of_the_files_reach_the_template(tmp_path: Path) -> None:
    """They come from `processing_kwargs`, and change the fingerprint."""
    text = (
        "{{ messages[0].content }}\n<think>{{ messages[1].content }}<|im_end|>"
        "{% if add_generation_prompt %} go{% endif %}{{ tone }}"
    )
    folder = _with_template(
        copy_fixture(CAUSAL, tmp_path),
        text,
        processing_kwargs={"chat_template": {"add_generation_prompt": True, "tone": "!"}},
    )
    around = _load(folder).pair_texts
    assert around is not None
    assert around.document == ("<think>", "<|im_end|> go!")
    edit_json(folder / "sentence_bert_config.json", processing_kwargs={"chat_template": {}})
    around = _load(folder).pair_texts
    assert around is not None
    assert around.document == ("<think>", "<|im_end|>")


def test_newlines_end_tokens_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    """Texts merged as wholes are split after a newline, unless an entry goes on behind one."""
    folder = copy_fixture("cross-gemma-causal", tmp_path)
    assert _load(folder).pair_texts is not None
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text("utf-8"))
    parts["model"]["vocab"]["\nB"] = len(parts["model"]["vocab"])
    path.write_text(json.dumps(parts))
    with pytest.raises(ModelError, match="no place between query and document"):
        _load(folder)


def test_a_template_whose_tokens_are_split_is_refused(tmp_path: Path) -> None:
    """`split_special_tokens` splits the template's own special tokens in the reference."""
    folder = copy_fixture("cross-qwen3-template", tmp_path)
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(ModelError, match="split_special_tokens is not supported with the chat"):
        Tokenizer.load(read(resolve(str(folder))))
