"""What `EmbedBatch` makes of DataFrames, in an environment that has them.

python frames.py HOST:PORT
"""

import sys

import numpy as np
import pandas as pd
import polars as pl

from embedgrpc.client.engines import EmbedBatch

TEXTS = ["a tower", None, "a river", ""]


def check_pandas(embed, due):
    """The index stays, and null of every kind is null."""
    for values in (TEXTS, np.array(TEXTS, object), pd.Categorical(TEXTS)):
        frame = pd.DataFrame({"id": [1, 2, 3, 4], "text": values}, index=[7, 7, 8, 9])
        made = embed(frame)
        assert list(made.columns) == ["id", "text", "embedding", "error"]
        assert made.index.tolist() == [7, 7, 8, 9]
        assert list(frame.columns) == ["id", "text"]
        rows = made["embedding"].tolist()
        assert [row is None for row in rows] == [False, True, False, True]
        np.testing.assert_allclose(np.stack([rows[0], rows[2]]), due, atol=1e-5)
        assert made["error"].tolist()[0] is None
        assert made["error"].tolist()[1] == "EMPTY_INPUT: the text is null"
    empty = EmbedBatch("127.0.0.1:1")(frame.head(0))  # asks no server
    assert (empty.dtypes == made.dtypes).all()


def check_polars(embed, due):
    """Vectors are an Array, with nulls."""
    frame = pl.DataFrame({"id": [1, 2, 3, 4], "text": TEXTS})
    made = embed(frame)
    assert made.schema["embedding"] == pl.Array(pl.Float32, embed.dimensions())
    assert made.schema["error"] == pl.String
    assert made["embedding"].is_null().to_list() == [False, True, False, True]
    found = made["embedding"].filter(made["error"].is_null()).to_numpy()
    np.testing.assert_allclose(found, due, atol=1e-5)
    assert embed(frame.head(0)).schema == made.schema


def main():
    embed = EmbedBatch(sys.argv[1])
    due = embed({"text": np.array(["a tower", "a river"], object)})["embedding"]
    check_pandas(embed, due)
    check_polars(embed, due)
    scaled = EmbedBatch(sys.argv[1], encoding="int8")
    assert list(scaled(pd.DataFrame({"text": TEXTS})).columns[1:]) == [
        "embedding",
        "scale",
        "error",
    ]
    assert scaled(pl.DataFrame({"text": TEXTS})).schema["embedding"].inner == pl.Int8
    bits = EmbedBatch(sys.argv[1], encoding="ubinary")
    assert bits(pd.DataFrame({"text": TEXTS}))["embedding"][0].dtype == np.uint8
    assert bits(pl.DataFrame({"text": TEXTS})).schema["embedding"] == pl.Binary


if __name__ == "__main__":
    main()
