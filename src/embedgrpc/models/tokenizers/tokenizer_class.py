"""Names the class that transformers 5 uses for a tokenizer.

For some classes, transformers rebuilds the normaliser, the pre-tokenizer and the special tokens.
From `tokenizer.json`, it takes little more than the vocabulary. For a general class,
`tokenizer.json` counts.
"""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject

# `tokenizer.json` counts.
GENERAL = ""
# The classes that are rebuilt, and their other names.
_REBUILT = {
    "AlbertTokenizer": (),
    "BertTokenizer": (
        "ElectraTokenizer",
        "LayoutLMTokenizer",
        "LxmertTokenizer",
        "MobileBertTokenizer",
        "SqueezeBertTokenizer",
    ),
    "CamembertTokenizer": (),
    "DistilBertTokenizer": (),
    "GPT2Tokenizer": (),
    "GemmaTokenizer": (),
    "LlamaTokenizer": (),
    "MPNetTokenizer": (),
    "Qwen2Tokenizer": (),
    "RobertaTokenizer": ("BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer"),
    "T5Tokenizer": (),
    "XLMRobertaTokenizer": (),
}
# transformers rebuilds DebertaV2Tokenizer without the normaliser of the published models: texts get
# other tokens than in training. `tokenizer.json` is right.
_TAKEN_FROM_THE_FILE = ("DebertaV2Tokenizer",)
_NAMES = {
    name: known
    for known, others in {**_REBUILT, **dict.fromkeys(_TAKEN_FROM_THE_FILE, ())}.items()
    for name in (known, *others)
}
# Their tokenizers also return the token types of a text. Source: `model_input_names`.
_WITH_TYPES = frozenset({"BertTokenizer", "DebertaV2Tokenizer"})
# These are rebuilt in other ways, or written in Python.
_REFUSED = frozenset(
    {
        "BarthezTokenizer", "BartphoTokenizer", "BertGenerationTokenizer", "BertJapaneseTokenizer",
        "BertweetTokenizer", "BigBirdTokenizer", "BioGptTokenizer", "BlenderbotSmallTokenizer",
        "BlenderbotTokenizer", "ByT5Tokenizer", "CLIPTokenizer", "CTRLTokenizer",
        "CanineTokenizer", "ClvpTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer",
        "CohereTokenizer", "ConvBertTokenizer", "CpmAntTokenizer", "CpmTokenizer",
        "DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer",
        "DebertaTokenizer", "DiaTokenizer", "EsmTokenizer", "EsmcTokenizer", "FNetTokenizer",
        "FSMTTokenizer", "FlaubertTokenizer", "FunnelTokenizer", "GPTNeoXJapaneseTokenizer",
        "GPTNeoXTokenizer", "GPTSw3Tokenizer", "HerbertTokenizer", "LayoutLMv2Tokenizer",
        "LayoutLMv3Tokenizer", "LayoutXLMTokenizer", "LukeTokenizer", "M2M100Tokenizer",
        "MBart50Tokenizer", "MBartTokenizer", "MLukeTokenizer", "MarianTokenizer",
        "MarkupLMTokenizer", "MyT5Tokenizer", "NllbTokenizer", "NougatTokenizer",
        "OpenAIGPTTokenizer", "PLBartTokenizer", "PegasusTokenizer", "PerceiverTokenizer",
        "PhobertTokenizer", "ProphetNetTokenizer", "Qwen3_5Tokenizer", "RagTokenizer",
        "ReformerTokenizer", "RemBertTokenizer", "RoCBertTokenizer", "RoFormerTokenizer",
        "SeamlessM4TTokenizer", "Siglip2Tokenizer", "SiglipTokenizer", "SplinterTokenizer",
        "TapasTokenizer", "UdopTokenizer", "WhisperTokenizer", "XGLMTokenizer", "XLMTokenizer",
        "XLNetTokenizer",
    }
)  # fmt: skip
# The class of a model type, if no file names one.
# Source: `TOKENIZER_MAPPING_NAMES` of transformers.
_BY_MODEL_TYPE = {
    model_type: name
    for name, model_types in {
        "AlbertTokenizer": ("albert", "yoso"),
        "BertTokenizer": (
            "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert",
            "nezha", "nomic_bert", "qdqbert", "realm", "retribert", "squeezebert", "visual_bert",
        ),
        "BertGenerationTokenizer": ("bert-generation",),
        "BertJapaneseTokenizer": ("bert-japanese",),
        "BertweetTokenizer": ("bertweet",),
        "BigBirdTokenizer": ("big_bird",),
        "ByT5Tokenizer": ("byt5",),
        "CamembertTokenizer": ("camembert",),
        "CanineTokenizer": ("canine",),
        "CLIPTokenizer": ("clip",),
        "CohereTokenizer": ("cohere", "cohere2"),
        "DebertaTokenizer": ("deberta",),
        "DebertaV2Tokenizer": ("deberta-v2",),
        "DPRQuestionEncoderTokenizer": ("dpr",),
        "EsmTokenizer": ("esm",),
        "FNetTokenizer": ("fnet",),
        "FunnelTokenizer": ("funnel",),
        "GemmaTokenizer": (
            "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "t5gemma",
        ),
        "GPT2Tokenizer": ("codegen", "dbrx", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"),
        "GPTNeoXTokenizer": ("gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe"),
        "HerbertTokenizer": ("herbert",),
        "LukeTokenizer": ("luke",),
        "LxmertTokenizer": ("lxmert",),
        "M2M100Tokenizer": ("m2m_100",),
        "MBartTokenizer": ("mbart",),
        "MLukeTokenizer": ("mluke",),
        "MobileBertTokenizer": ("mobilebert",),
        "MPNetTokenizer": ("mpnet",),
        "NllbTokenizer": ("nllb", "nllb-moe"),
        "PegasusTokenizer": ("pegasus",),
        "PhobertTokenizer": ("phobert",),
        "Qwen2Tokenizer": (
            "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "qwen2_vl", "qwen2_5_vl",
            "qwen3_vl",
        ),
        "Qwen3_5Tokenizer": ("qwen3_5", "qwen3_5_text"),
        "ReformerTokenizer": ("reformer",),
        "RemBertTokenizer": ("rembert",),
        "RobertaTokenizer": (
            "bart", "data2vec-text", "ibert", "lilt", "longformer", "mega", "mra", "roberta",
            "roberta-prelayernorm",
        ),
        "RoFormerTokenizer": ("roformer",),
        "T5Tokenizer": ("mt5", "switch_transformers", "t5"),
        "XLMRobertaTokenizer": ("gte", "jina_embeddings_v3", "xlm-roberta", "xmod"),
        "XLMTokenizer": ("xlm",),
        "XLNetTokenizer": ("xlnet",),
    }.items()
    for model_type in model_types
}  # fmt: skip
# The class that these name in their files does not count: `tokenizer.json` does.
_GENERAL_MODEL_TYPES = frozenset(
    {
        "arctic", "bigbird_pegasus", "camembertv2-base", "ernie4_5", "ernie4_5_moe", "flex_olmo",
        "glm", "glm4", "glm4_moe", "gpt_bigcode", "granite", "granitemoe", "hyperclovax",
        "internlm2", "internlm3", "jamba", "minicpm3", "ministral", "ministral3", "mistral",
        "mistral3", "mixtral", "modernbert", "modernbert-decoder", "nemotron", "nystromformer",
        "olmo2", "olmo3", "pegasus_x", "persimmon", "phi3", "phimoe", "stablelm", "umt5",
        "xlm-roberta-xl",
    }
)  # fmt: skip
# The class of these model types counts, whatever their files name.
_FIXED_MODEL_TYPES = frozenset({"qwen2", "qwen3_5", "qwen3_5_text"})


def choose_class(config: JsonObject, tokenizer_config: JsonObject) -> str:
    """Return the class of a tokenizer, or `GENERAL` if it has none of its own.

    Args:
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.

    Raises:
        ModelError: The class is not supported.

    Source: transformers' `AutoTokenizer.from_pretrained`.
    """
    model_type = config.text("model_type", default="")
    if model_type in _GENERAL_MODEL_TYPES:
        return GENERAL
    registered = _BY_MODEL_TYPE.get(model_type, "")
    file = tokenizer_config
    named = tokenizer_config.text("tokenizer_class", default="")
    if not named:
        file, named = config, config.text("tokenizer_class", default="")
    name = named.removesuffix("Fast")
    if not name or (registered and model_type in _FIXED_MODEL_TYPES):
        file, name = config, registered
    if name in _REFUSED:
        raise ModelError(
            f"{file.path}: the tokenizer class {name} is not supported; if tokenizer.json alone "
            "gives the right tokens, set tokenizer_class to PreTrainedTokenizerFast in "
            "tokenizer_config.json"
        )
    return _NAMES.get(name, GENERAL)


def is_rebuilt(class_name: str) -> bool:
    """Return whether a class takes only parts of `tokenizer.json`."""
    return class_name in _REBUILT


def has_types(class_name: str) -> bool:
    """Return whether models with this class receive token types, if no file says."""
    return class_name in _WITH_TYPES
