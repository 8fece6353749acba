"""Embed Parquet with Ray Data: actors with a connection each.

python ray_data.py HOST:PORT documents.parquet vectors
"""

import sys

import ray
from ray.data import ActorPoolStrategy

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Read, embed and write; Ray starts actors that are lost again, and their batches."""
    target, source, output = sys.argv[1:]
    documents = ray.data.read_parquet(source)
    embedded = documents.map_batches(
        EmbedBatch,
        fn_constructor_args=(target,),
        fn_constructor_kwargs={"text_column": "text"},
        # In "numpy", vectors would become Ray's own tensors, also in Parquet.
        batch_format="pyarrow",
        batch_size=1024,
        compute=ActorPoolStrategy(size=2),
        num_cpus=0.1,  # an actor waits for the server most of the time
    )
    embedded.write_parquet(output)


if __name__ == "__main__":
    main()
