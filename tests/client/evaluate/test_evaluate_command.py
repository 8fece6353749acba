import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.client.cli import main
from embedgrpc.client.cli_arguments import parse_arguments
from embedgrpc.client.evaluate.measures import quality_of
from embedgrpc.client.evaluate.vector_forms import BYTES_OF_FORMS
from embedgrpc.client.similarity import similarity
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import DIMENSIONS, vector_of
from tests.client.servicer import Refusal, Script

Run = Callable[..., tuple[int, str, str]]
Rows = list[dict[str, Any]]

DOCUMENTS = {f"d{number}": f"document {number}" for number in range(60)}
QUERIES = {f"q{number}": f"query {number}" for number in range(5)}
RELEVANT = {
    query: {f"d{7 * number + step}": step + 1 for step in range(4)}
    for number, query in enumerate(QUERIES)
}


def write(
    folder: Path,
    documents: Mapping[str, str] = DOCUMENTS,
    queries: Mapping[str, str] = QUERIES,
    relevant: Mapping[str, Mapping[str, int]] = RELEVANT,
) -> Path:
    """Write a dataset; its documents have a title."""
    (folder / "qrels").mkdir()
    rows: Rows = [
        {"_id": one, "title": text.partition(" ")[0], "text": text.partition(" ")[2]}
        for one, text in documents.items()
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    lines = [json.dumps({"_id": one, "text": text}) for one, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines), "utf-8")
    judged = [f"{q}\t{d}\t{gain}" for q, gains in relevant.items() for d, gain in gains.items()]
    lines = ["query-id\tcorpus-id\tscore", *judged]
    (folder / "qrels/test.tsv").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture
def run(target: str, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command: its exit code and what it wrote."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["evaluate", *map(str, arguments), "--target", target])
        written = capfd.readouterr()
        return code, written.out, written.err

    return call


def expected(documents: Mapping[str, str], function: Callable[[Any, Any], Any]) -> list[float]:
    """Return nDCG@10 of each query, by a plain sort over everything."""
    rows = np.stack([vector_of(text) for text in documents.values()])
    found = []
    for query, text in QUERIES.items():
        scores = function(vector_of(text)[None], rows)[0]
        best = sorted(zip(scores, documents, strict=True), reverse=True)
        found.append(quality_of([one for _, one in best], RELEVANT[query]).ndcg)
    return found


def test_each_form_is_searched_exactly(run: Run, tmp_path: Path) -> None:
    """The figures are those of a sort over all documents, with the sizes of the vectors."""
    code, out, err = run(write(tmp_path), "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["fingerprint"] == "f1"
    assert (answer["documents"], answer["queries"], answer["similarity"]) == (60, 5, "cosine")
    by_form = {row["vectors"]: row for row in answer["results"]}
    assert {form: row["bytes_per_vector"] for form, row in by_form.items()} == {
        "float32": 4 * DIMENSIONS,
        "int8": DIMENSIONS + 4,
        "ubinary": 2,
        "ubinary+query": 2,
        "ubinary+int8": 2 + DIMENSIONS + 4,
    }

    def signs(rows: Any) -> Any:
        return np.where(rows > 0, 1, -1)

    exact = np.mean(expected(DOCUMENTS, similarity))
    assert by_form["float32"]["ndcg@10"] == pytest.approx(exact)
    bits = np.mean(expected(DOCUMENTS, lambda query, rows: signs(query) @ signs(rows).T))
    assert by_form["ubinary"]["ndcg@10"] == pytest.approx(bits)
    # Fewer documents than candidates: all are ranked by the second form.
    mixed = np.mean(expected(DOCUMENTS, lambda query, rows: query @ signs(rows).T))
    assert by_form["ubinary+query"]["ndcg@10"] == pytest.approx(mixed)
    assert by_form["ubinary+int8"]["ndcg@10"] == by_form["int8"]["ndcg@10"]
    assert all(row["recall@100"] == 1 for row in answer["results"])


def test_the_table_names_what_was_measured(run: Run, tmp_path: Path) -> None:
    """A line for the model, and a table in Markdown, whose first row is the measure."""
    code, out, _ = run(write(tmp_path), "--vectors", "float16,ubinary", "--dimensions", DIMENSIONS)
    title, blank, header, rule, first, second = out.splitlines()
    assert code == 0
    assert title.endswith(": 60 documents, 5 queries, cosine similarity")
    assert blank == ""
    assert header.split("|")[4].strip() == "nDCG@10"
    assert set(rule) == set("|-: ")
    assert [one.strip() for one in first.split("|")[1:4]] == ["float16", "12", "24"]
    assert "100.0%" in first
    assert second.startswith("| ubinary ")


def test_prompts_are_those_of_queries_and_documents(
    run: Run, script: Script, tmp_path: Path
) -> None:
    """Without a prompt, each role has its input type; a title goes before its text."""
    assert run(write(tmp_path), "--document-prompt-text", "passage: ")[0] == 0
    setups = [one for one in script.calls if isinstance(one, pb.StreamEmbedSetup)]
    kinds = [setup.options.WhichOneof("prompt") for setup in setups]
    assert kinds == ["input_type", "prompt_text"]
    sent = {item.text for one in script.messages for item in one.batch.inputs}
    assert sent == {*DOCUMENTS.values(), *QUERIES.values()}


def test_texts_that_fail_count_as_missed(run: Run, tmp_path: Path) -> None:
    """The figures of the others stand, the exit code is 1, and a line says where and why."""
    documents = {**DOCUMENTS, "d3": "fail:INPUT_TOO_LONG ", "d30": " "}
    code, out, err = run(write(tmp_path, documents), "--json")
    assert code == 1
    assert json.loads(out)["failed_documents"] == 2
    (line,) = [line for line in err.splitlines() if "failed" in line]
    assert "2 of 60 documents and 0 of 5 queries failed" in line
    assert f"{tmp_path}/corpus.jsonl: line " in line
    rest = {one: text for one, text in documents.items() if one not in ("d3", "d30")}
    exact = np.mean(expected(rest, similarity))
    assert json.loads(out)["results"][0]["ndcg@10"] == pytest.approx(exact)


def test_a_query_that_fails_finds_nothing(run: Run, tmp_path: Path) -> None:
    """It counts as zero in every mean."""
    queries = {**QUERIES, "q0": "fail:INPUT_TOO_LONG"}
    code, out, err = run(write(tmp_path, queries=queries), "--json")
    assert (code, json.loads(out)["failed_queries"]) == (1, 1)
    assert "1 of 5 queries failed" in err
    assert "the query 'q0': INPUT_TOO_LONG: " in err
    exact = np.sum(expected(DOCUMENTS, similarity)[1:]) / 5
    assert json.loads(out)["results"][0]["ndcg@10"] == pytest.approx(exact)


def test_what_is_not_judged_relevant_is_left_out_and_told(run: Run, tmp_path: Path) -> None:
    """Queries with gains of 0 or less have no figure; documents that are not there are missed."""
    relevant = {**RELEVANT, "q0": {"d0": 0, "d1": -1}, "q1": {"d7": 1, "nowhere": 1}}
    code, out, err = run(write(tmp_path, relevant=relevant), "--json")
    answer = json.loads(out)
    assert (code, answer["queries"], answer["queries_without_relevant"]) == (0, 4, 1)
    assert answer["relevant_documents_absent"] == 1
    assert answer["results"][0]["recall@100"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert "left out" in err
    assert "counted as missed" in err


def test_the_document_of_the_query_can_be_left_out(run: Run, tmp_path: Path) -> None:
    """With the flag, a document with the id of the query is no hit."""
    documents = {**DOCUMENTS, "q0": QUERIES["q0"]}
    relevant = {"q0": {"q0": 1, "d1": 1}}
    folder = write(tmp_path, documents, relevant=relevant)
    with_it = json.loads(run(folder, "--json")[1])["results"][0]
    without = json.loads(run(folder, "--json", "--ignore-identical-ids")[1])["results"][0]
    assert (with_it["recall@100"], with_it["mrr@10"]) == (1, 1)
    assert without["recall@100"] == 0.5


def test_a_broken_stream_is_ridden_out(run: Run, script: Script, tmp_path: Path) -> None:
    """The figures are those of an undisturbed run."""
    folder = write(tmp_path)
    undisturbed = json.loads(run(folder, "--json")[1])
    done = script.answered_count
    for after in (3, 20, 41):
        script.breaks.append((done + after, Refusal(grpc.StatusCode.UNAVAILABLE, "gone")))
    code, out, err = run(folder, "--json", "--patience", 60)
    assert (code, json.loads(out)) == (0, undisturbed), err
    assert not script.breaks


def test_texts_that_are_refused_for_now_are_sent_again(
    run: Run, script: Script, tmp_path: Path
) -> None:
    """No text of an overloaded server counts as failed, and the others are sent once."""
    folder = write(tmp_path)
    undisturbed = json.loads(run(folder, "--json")[1])
    script.messages.clear()
    refused = {DOCUMENTS["d3"]: 3, DOCUMENTS["d59"]: 1, QUERIES["q0"]: 2}
    script.overloads.update(refused)
    code, out, err = run(folder, "--json", "--patience", 60)
    assert (code, json.loads(out)) == (0, undisturbed), err
    sent = Counter(item.text for one in script.messages for item in one.batch.inputs)
    assert sent == {**dict.fromkeys((*DOCUMENTS.values(), *QUERIES.values()), 1)} | {
        text: count + 1 for text, count in refused.items()
    }


def test_patience_with_an_overloaded_server_ends(run: Run, script: Script, tmp_path: Path) -> None:
    """Figures that count refused texts as missed would say nothing of the model: none is shown."""
    script.overloads[DOCUMENTS["d3"]] = 1000
    code, out, err = run(write(tmp_path), "--json", "--patience", "0.5")
    assert (code, out) == (1, "")
    assert err.endswith("embedgrpc-client: OVERLOADED: the queue is full\n")


def test_another_model_for_the_documents_ends_it(run: Run, script: Script, tmp_path: Path) -> None:
    """Its vectors would not fit those of the queries."""
    script.fingerprints = ["f1", "f2"]
    code, out, err = run(write(tmp_path), "--json")
    assert (code, out) == (1, "")
    assert "its fingerprint is f2 and was f1" in err


BAD_FILES = {
    "corpus.jsonl": [
        ('{"_id": "a", "text": "b"}\n{"_id": "a"', "line 2 is not a JSON object"),
        ('{"_id": "a", "text": "b"}\n\n{"_id": "a", "text": "c"}', "line 3 has the id of line 1"),
        ('{"text": "b"}', 'line 1 has no "_id"'),
        ('{"_id": "a", "title": "b"}', 'line 1 has no text in "text"'),
        ('{"_id": "a", "title": 7, "text": "b"}', 'line 1 has no text in "title"'),
        ('{"_id": "a", "text": "\\ud800"}', "line 1 has a lone surrogate"),
        ("", "has no documents"),
    ],
    "queries.jsonl": [
        ('{"_id": "q0", "text": "b"}\n{"_id": "q0", "text": "b"}', "line 2 has the id of a line"),
        ('{"_id": "q0", "text": null}', 'line 1 has no text in "text"'),
    ],
    "qrels/test.tsv": [
        ("query-id\tcorpus-id\tscore\nq0\td0", "line 2 has 2 fields"),
        ("q0\td0\t1\nq0\td1\tone", "line 2 has a relevance that is no whole number: 'one'"),
        ("nobody\td0\t1", "line 1 has a query that is not in queries.jsonl: 'nobody'"),
        ("q0\td0\t1\nq0\td0\t2", "line 2 judges the document 'd0' again"),
        ("q0\tnowhere\t1", "judges no document of"),
    ],
}


@pytest.mark.parametrize(
    "case",
    [(name, text, message) for name, cases in BAD_FILES.items() for text, message in cases],
)
def test_a_bad_file_is_named_with_its_line(
    case: tuple[str, str, str], run: Run, script: Script, tmp_path: Path
) -> None:
    """Nothing is sent; one line says what is wrong where, and the exit code is 2."""
    name, text, message = case
    folder = write(tmp_path)
    (folder / name).write_text(text, "utf-8")
    code, out, err = run(folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{folder / name}" in err
    assert message in err
    assert not script.messages


def test_a_missing_split_is_told_with_those_there_are(run: Run, tmp_path: Path) -> None:
    """So is a missing file."""
    folder = write(tmp_path)
    code, _, err = run(folder, "--split", "dev")
    assert code == 2
    assert err.endswith("qrels/dev.tsv is not a file: --split can be test\n")
    (folder / "queries.jsonl").unlink()
    assert run(folder)[2].endswith("queries.jsonl is not a file\n")


def test_dimensions_that_the_model_has_not_are_refused(run: Run, tmp_path: Path) -> None:
    """Before the documents are sent, with those that it has."""
    code, _, err = run(write(tmp_path), "--dimensions", "12,8")
    assert code == 2
    assert "has no vectors of 8 dimensions, but 12" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vectors", "int9"), "no 'int9'; did you mean int8?"),
        (("--dimensions", "12,x"), "'x' is not a whole number above 0"),
        (("--dimensions", "0"), "'0' is not a whole number above 0"),
        (("--candidates", "99"), "'99' is not a whole number from 100"),
    ],
)
def test_wrong_flags_are_refused(
    flags: tuple[str, str], message: str, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and the line says what was meant."""
    with pytest.raises(SystemExit) as ended:
        run("folder", *flags)
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_the_page_shows_commands_and_measured_rows() -> None:
    """Its commands parse, and its table has the sizes that the command prints."""
    page = (Path(__file__).parents[3] / "docs" / "evaluate.md").read_text("utf-8")
    commands = re.findall(r"^embedgrpc-client (evaluate .*)$", page, re.MULTILINE)
    assert [parse_arguments(shlex.split(one), "x").dataset for one in commands] == [
        "my-dataset"
    ] * 2
    rows = re.findall(r"^\| (\S+) +\| +(\d+) \| +([\d,]+) \|", page, re.MULTILINE)
    assert len(rows) == 20
    for form, dimensions, size in rows:
        assert BYTES_OF_FORMS[form](int(dimensions)) == int(size.replace(",", ""))
