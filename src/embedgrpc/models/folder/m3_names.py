"""The output names of BGE-M3 exports."""

# FlagEmbedding's names first, then those of other exporters.
DENSE_NAMES = ("dense_vecs", "dense_embeddings", "dense_vectors")
WEIGHT_NAMES = ("sparse_vecs", "sparse_weights", "sparse_vectors")
VECTOR_NAMES = ("colbert_vecs", "colbert_vectors", "colbert_embeddings")
