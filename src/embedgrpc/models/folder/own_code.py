"""Recognises models whose own code is known, so that its graph can be built without running it.

Repositories of these families come with Python code, which `auto_map` of config.json names. The
code itself is never read: what it computes is known from its published form. Where transformers
has the architecture as well, it ignores `auto_map` unless told to trust it.
"""

from embedgrpc.models.files.json_file import JsonObject

_HEADS = (
    "ForMaskedLM", "ForPreTraining", "ForMultipleChoice", "ForQuestionAnswering",
    "ForSequenceClassification", "ForTokenClassification",
)  # fmt: skip


def _classes(configuration: str, modeling: str, prefix: str) -> frozenset[str]:
    heads = (f"{modeling}.{prefix}{head}" for head in ("Model", *_HEADS))
    return frozenset({f"{configuration}.{prefix}Config", *heads})


# By `model_type` of config.json. Source: nomic-ai/nomic-bert-2048, Alibaba-NLP/new-impl and
# Snowflake/snowflake-arctic-embed-m-v2.0.
_KNOWN_CLASSES = {
    "nomic_bert": _classes("configuration_hf_nomic_bert", "modeling_hf_nomic_bert", "NomicBert"),
    "new": _classes("configuration", "modeling", "New"),
    "gte": _classes("configuration_hf_alibaba_nlp_gte", "modeling_hf_alibaba_nlp_gte", "Gte"),
}


def has_known_code(config: JsonObject) -> bool:
    """Return whether all classes that `auto_map` of `config.json` names are known."""
    classes = config.values.get("auto_map")
    known = _KNOWN_CLASSES.get(config.text("model_type", default=""), frozenset())
    if not isinstance(classes, dict):
        return False
    # "owner/repository--module.Class", or without the repository if the code is in the folder.
    return all(
        isinstance(name, str) and name.rpartition("--")[2] in known for name in classes.values()
    )
