"""Embed Parquet with Polars, without holding all of it in memory.

python polars_frame.py HOST:PORT documents.parquet vectors.parquet
"""

import sys

import polars as pl

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Scan, embed and write. Of a `DataFrame`, `embed(frame)` is enough."""
    target, source, output = sys.argv[1:]
    documents = pl.scan_parquet(source)
    embed = EmbedBatch(target, text_column="text")
    added = {"embedding": pl.Array(pl.Float32, embed.dimensions()), "error": pl.String}
    schema = {**documents.collect_schema(), **added}
    documents.map_batches(embed, schema=schema, streamable=True).sink_parquet(output)


if __name__ == "__main__":
    main()
