"""Embedders and rankers for frameworks: one module for each.

Nothing imports a framework but the module of its name. Install it with the extra of the same name,
such as `pip install embedgrpc-client[langchain]`.
"""
