"""The names of the outputs that exports of BGE-M3 have."""

# As FlagEmbedding names them, and as further exports do.
DENSE_NAMES = ("dense_vecs", "dense_embeddings", "dense_vectors")
WEIGHT_NAMES = ("sparse_vecs", "sparse_weights", "sparse_vectors")
VECTOR_NAMES = ("colbert_vecs", "colbert_vectors", "colbert_embeddings")
