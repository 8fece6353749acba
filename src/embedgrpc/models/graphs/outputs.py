"""The names of the outputs of a prepared graph, and of its input beside tokens."""

# float32 [batch, dimensions]: normalised if the model's files say so.
SENTENCE_EMBEDDING = "sentence_embedding"
# float32 [batch, dimensions]: before Normalize; only if the model normalises.
POOLED_EMBEDDING = "pooled_embedding"
# float32 [batch, labels]: the logits of a classifier; one of a cross-encoder.
LOGITS = "logits"
# float32 [batch, tokens]: the weight of each token in a sparse vector, never below 0.
TOKEN_WEIGHTS = "token_weights"  # noqa: S105 - tokens of text, not a password
# float32 [batch, vocabulary]: a sparse vector with its zeros, without the padding.
VOCABULARY_WEIGHTS = "vocabulary_weights"
# float32 [batch, tokens, dimensions]: a vector per token, for late interaction; of length 1 if the
# model says so. Rows of padding hold arbitrary values.
TOKEN_EMBEDDINGS = "token_embeddings"  # noqa: S105 - tokens of text, not a password
# float32 [batch, tokens, hidden_size]: the vectors that are pooled. Rows of padding hold arbitrary
# values.
TOKEN_VECTORS = "token_vectors"  # noqa: S105 - tokens of text, not a password

OUTPUTS = (
    SENTENCE_EMBEDDING,
    POOLED_EMBEDDING,
    LOGITS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
    TOKEN_EMBEDDINGS,
    TOKEN_VECTORS,
)

# The input for models that do not pool the tokens of a prompt, int64 [batch]: their number.
PROMPT_TOKENS = "prompt_tokens"

# The names that exporters give the token vectors, float32 [batch, tokens, hidden_size].
HIDDEN_NAMES = ("last_hidden_state", "token_embeddings")
