"""The outputs that a prepared graph has, by name."""

# float32 [batch, dimensions]: as the model's files say, normalised or not.
SENTENCE_EMBEDDING = "sentence_embedding"
# float32 [batch, dimensions]: before Normalize; only where the model normalises.
POOLED_EMBEDDING = "pooled_embedding"
# float32 [batch, 1]: a cross-encoder's logit.
LOGITS = "logits"
# float32 [batch, tokens]: how much each token counts in a sparse vector, never below 0.
TOKEN_WEIGHTS = "token_weights"  # noqa: S105 - tokens of text, not a password
# float32 [batch, vocabulary]: a sparse vector with its zeros; padding has no part in it.
VOCABULARY_WEIGHTS = "vocabulary_weights"
# float32 [batch, tokens, dimensions]: a vector per token, for late interaction; of length 1 where
# the model says so. Rows of padding are not to be read.
TOKEN_EMBEDDINGS = "token_embeddings"  # noqa: S105 - tokens of text, not a password

OUTPUTS = (
    SENTENCE_EMBEDDING,
    POOLED_EMBEDDING,
    LOGITS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
    TOKEN_EMBEDDINGS,
)
