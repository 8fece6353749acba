"""What the configuration of a model in a Triton server says about where the model comes from.

Keys of `parameters` in config.pbtxt. They are written into repositories and read back by whoever
is to tokenize for the model.
"""

# Where tokenizer and properties are: a model source, for a repository with its commit.
SOURCE_PARAMETER = "embedgrpc_source"
# What the model's answers depend on: the content hash of its graph, where it is run as it is.
FINGERPRINT_PARAMETER = "embedgrpc_fingerprint"
