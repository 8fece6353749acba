from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedgrpc.client import Client
from tests.client.bulk.conftest import Bulk, write
from tests.service.conftest import FIXTURES, running_server


@pytest.fixture(scope="module")
def served(cache_dir: Path) -> Iterator[str]:
    """The address of a server with a tiny model."""
    with running_server("--model", str(FIXTURES / "bert-mean"), cache_dir=cache_dir) as address:
        yield address


def test_vectors_are_those_of_a_call(bulk: Bulk, served: str, tmp_path: Path) -> None:
    """Each row has the vector that its text gets alone; prompts and dimensions reach the server."""
    texts = [f"the tower is {number} metres tall" for number in range(300)]
    texts[7] = ""
    source = write(pa.table({"text": texts}), tmp_path / "in.parquet")
    options = ("--prompt-text", "query: ", "--dimensions", 8, "--unit-rows", 50)
    bulk(source, "--output", tmp_path / "out", *options, at=served, status=1)
    output = pq.read_table(tmp_path / "out")
    assert output["error"][7].as_py().startswith("EMPTY_INPUT: ")
    with Client(served) as client:
        due = client.embed(texts[8:40], prompt_text="query: ", dimensions=8)
    found = np.array(output["embedding"].to_pylist()[8:40], np.float32)
    assert np.allclose(found, due.vectors, atol=1e-5)
    (metadata,) = {
        pq.ParquetFile(path).schema_arrow.metadata[b"embedgrpc.fingerprint"]
        for path in (tmp_path / "out").glob("*.parquet")
    }
    assert metadata.decode() == due.fingerprint


def test_wrong_options_are_refused_by_the_server(bulk: Bulk, served: str, tmp_path: Path) -> None:
    """What the model cannot do is wrong usage, and nothing is written."""
    source = write(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    flags = ("--output", tmp_path / "out", "--dimensions", 4000)
    assert "4000" in bulk(source, *flags, at=served, status=2)
    assert not list((tmp_path / "out").glob("part-*"))
