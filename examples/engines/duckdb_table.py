"""Embed a query's result into a table of DuckDB, batch by batch, and search it.

python duckdb_table.py HOST:PORT documents.parquet vectors.duckdb
"""

import sys

import duckdb
import pyarrow as pa

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Embed, store, and find the nearest document of a query."""
    target, source, output = sys.argv[1:]
    connection = duckdb.connect(output)
    embed = EmbedBatch(target, text_column="text")
    # A cursor of its own: the table is filled while its batches are read.
    documents = connection.cursor().read_parquet(source).to_arrow_reader(1024)
    schema = embed.arrow_schema(documents.schema)
    embedded = pa.RecordBatchReader.from_batches(schema, map(embed, documents))  # noqa: F841 -- named in the query
    connection.execute("CREATE TABLE vectors AS SELECT * FROM embedded")

    query = embed({"text": ["How tall is the tower?"]})["embedding"][0]
    nearest = connection.execute(
        f"""
        SELECT id, text, array_cosine_similarity(embedding, ?::FLOAT[{len(query)}]) AS similarity
        FROM vectors WHERE error IS NULL ORDER BY similarity DESC LIMIT 1
        """,  # noqa: S608 -- a number
        [query.tolist()],
    )
    print(nearest.fetchall())


if __name__ == "__main__":
    main()
