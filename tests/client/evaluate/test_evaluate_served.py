import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.beir import write_collection
from benchmarks.retrieval import read_judgements, search_quality
from benchmarks.workloads import documents, queries
from embedgrpc.client import Client
from embedgrpc.client.cli import main
from embedgrpc.client.evaluate.vector_forms import BlockScores, shorten
from embedgrpc.client.similarity import similarity
from tests.service.conftest import FIXTURES, running_server

TEXTS = [f"the tower is {number} metres tall" for number in range(40)]


@pytest.fixture(scope="module")
def served(cache_dir: Path) -> Iterator[Client]:
    """A client of a server with a tiny model."""
    with (
        running_server("--model", str(FIXTURES / "bert-mean"), cache_dir=cache_dir) as address,
        Client(address) as client,
    ):
        yield client


@pytest.mark.parametrize("dimensions", [32, 12])
def test_derived_vectors_are_those_that_the_server_sends(served: Client, dimensions: int) -> None:
    """Shortened, as halves, as int8 and as bits: one embedding stands for all requests."""
    model = served.get_model(served.get_server().default_model)
    whole = served.encode_document(TEXTS)
    rows = shorten(whole, dimensions, normalize=model.normalized)
    sent = served.encode_document(TEXTS, dimensions=dimensions)
    assert np.allclose(rows, sent, atol=1e-5)
    scores = BlockScores(sent[:5], sent, "cosine")
    int8 = served.embed(TEXTS, dimensions=dimensions, encoding="int8", input_type="document")
    assert np.allclose(scores.int8, similarity(sent[:5], int8.to_float32()), atol=1e-3)
    bits = served.encode_document(TEXTS, dimensions=dimensions, encoding="ubinary")
    assert np.array_equal(np.packbits(sent > 0, axis=1), bits)
    distances = np.bitwise_count(bits[:5, None] ^ bits[None]).sum(axis=2)
    assert np.array_equal(scores.ubinary, dimensions - 2.0 * distances)


@pytest.mark.slow
def test_a_sample_of_cranfield_has_the_figures_of_the_benchmark(
    cache_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command finds what the exact search of the benchmark finds, with the default model."""
    relevant = read_judgements()
    chosen = dict(list(queries().items())[:20])
    judged = set.union(*(relevant[query] for query in chosen))
    sample = {
        one: text
        for number, (one, text) in enumerate(documents().items())
        if one in judged or number % 10 == 0
    }
    write_collection(tmp_path, sample, chosen, relevant)
    with running_server(cache_dir=cache_dir) as address:
        flags = ("--target", address, "--json", "--vectors", "float32,int8,ubinary,ubinary+query")
        assert main(["evaluate", str(tmp_path), *flags, "--dimensions", "384,128"]) == 0
        with Client(address) as client:
            due = search_quality(client, sample, chosen, relevant)
    rows = {
        (row["vectors"], row["dimensions"]): row
        for row in json.loads(capfd.readouterr().out)["results"]
    }
    for name, value in due.items():
        assert rows["float32", 384][name] == pytest.approx(value, abs=1e-4)
    figures = {key: row["ndcg@10"] for key, row in rows.items()}
    assert abs(figures["int8", 384] - figures["float32", 384]) < 0.01
    # Where they lie with this model: fewer bits find less, and the numbers of queries help.
    assert figures["ubinary", 128] < figures["ubinary+query", 128] < figures["float32", 128]
    assert figures["ubinary", 384] < figures["ubinary+query", 384] < figures["float32", 384]
