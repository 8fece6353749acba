"""The outputs that a prepared graph has, by name."""

# float32 [batch, dimensions]: as the model's files say, normalised or not.
SENTENCE_EMBEDDING = "sentence_embedding"
# float32 [batch, dimensions]: before Normalize; only where the model normalises.
POOLED_EMBEDDING = "pooled_embedding"
# float32 [batch, 1]: a cross-encoder's logit.
LOGITS = "logits"
