"""Embed Parquet with Spark: a connection for each Python worker.

spark-submit spark.py HOST:PORT documents.parquet vectors
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

from embedgrpc.client.engines import EmbedBatch


def main() -> None:
    """Read, embed and write; Spark runs tasks again whose worker is lost."""
    target, source, output = sys.argv[1:]
    spark = SparkSession.builder.appName("embed").getOrCreate()
    documents = spark.read.parquet(source)
    schema = StructType(
        [
            *documents.schema,
            StructField("embedding", ArrayType(FloatType())),
            StructField("error", StringType()),
        ]
    )
    embed = EmbedBatch(target, text_column="text")
    documents.mapInArrow(embed.map_arrow, schema).write.parquet(output)
    spark.stop()


if __name__ == "__main__":
    main()
