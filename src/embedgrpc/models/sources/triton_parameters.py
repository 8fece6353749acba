"""The `parameters` of config.pbtxt that connect a model on Triton with its files.

`embedgrpc triton-repo` writes them. The server that tokenizes for the model reads them.
"""

# The source of the tokenizer and the properties; a repository has its commit.
SOURCE_PARAMETER = "embedgrpc_source"
# The content hash of the model's graph.
FINGERPRINT_PARAMETER = "embedgrpc_fingerprint"
