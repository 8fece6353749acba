"""Embed Parquet with Dask: a call for each partition.

python dask_frames.py HOST:PORT documents.parquet vectors
"""

import sys

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Read, embed and write, with vectors as lists of fixed size."""
    target, source, output = sys.argv[1:]
    documents = dd.read_parquet(source, split_row_groups=True)
    embed = EmbedBatch(target, text_column="text")
    # Called with no rows, it tells Dask the columns and asks no server.
    embedded = documents.map_partitions(embed, meta=embed(documents._meta))  # noqa: SLF001 -- as Dask shows it
    vectors = pd.ArrowDtype(pa.list_(pa.float32(), embed.dimensions()))
    typed = embedded.astype({"embedding": vectors, "error": "string"})
    typed.to_parquet(output, write_index=False)


if __name__ == "__main__":
    main()
