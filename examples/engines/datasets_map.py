"""Embed a dataset with Hugging Face's datasets.

python datasets_map.py HOST:PORT documents.parquet vectors.parquet
"""

import sys

from datasets import Dataset

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Read, embed in two processes, and write."""
    target, source, output = sys.argv[1:]
    documents = Dataset.from_parquet(source)
    embed = EmbedBatch(target, text_column="text")
    embedded = documents.map(embed, batched=True, batch_size=1024, num_proc=2)
    embedded.to_parquet(output)


if __name__ == "__main__":
    main()
