"""Measure the forms of vectors on the Cranfield collection, with the client's own command.

uv run python -m benchmarks.beir [FLAGS of embedgrpc-client evaluate]
"""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import server
from benchmarks.retrieval import read_judgements
from benchmarks.workloads import documents, queries
from embedgrpc.client.cli import main as client_main


def main() -> None:
    """Write the collection in BEIR's layout, serve the default model, and evaluate it."""
    with tempfile.TemporaryDirectory() as folder, server() as served:
        write_collection(Path(folder), documents(), queries(), read_judgements())
        flags = ("--target", served.target, *sys.argv[1:])
        raise SystemExit(client_main(["evaluate", folder, *flags]))


def write_collection(
    folder: Path,
    texts: dict[str, str],
    asked: dict[str, str],
    relevant: dict[str, set[str]],
) -> None:
    """Write texts, queries and judgements in BEIR's layout; each relevant document has gain 1."""
    for name, rows in (("corpus", texts), ("queries", asked)):
        lines = (json.dumps({"_id": one, "text": text}) for one, text in rows.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    pairs = [(query, document) for query in asked for document in sorted(relevant[query])]
    judged = ["query-id\tcorpus-id\tscore", *(f"{query}\t{one}\t1" for query, one in pairs)]
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("\n".join(judged), "utf-8")


if __name__ == "__main__":
    main()
