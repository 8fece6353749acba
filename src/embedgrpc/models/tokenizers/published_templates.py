"""The templates that authors of causal rerankers publish as code, as chat templates.

Sources: the model cards of Qwen3-Reranker and bge-reranker-v2-gemma, and `MxbaiRerankV2` of
mxbai-rerank.
"""

from collections.abc import Mapping

from embedgrpc.models.kinds import PairTemplate


def _content(role: str) -> str:
    return f"messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first"


_QUERY = "{{ " + _content("query") + " }}"
_DOCUMENT = "{{ " + _content("document") + " }}"
# Newlines after a tag would be dropped.
_LINE = "{{ '\\n' }}"
_QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ " + _content("system") + " | default('Given a web search "
    "query, retrieve relevant passages that answer the query', true) }}" + _LINE
    + "<Query>: " + _QUERY + _LINE + "<Document>: " + _DOCUMENT + "<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n" + _LINE
)  # fmt: skip
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n{% set instruction = " + _content("system") + " %}"
    "{% if instruction %}instruction: {{ instruction }}" + _LINE + "{% endif %}"
    "query: " + _QUERY + _LINE + "document: " + _DOCUMENT + _LINE
    + "You are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, then "
    "provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    "<|im_end|>\n<|im_start|>assistant" + _LINE
)  # fmt: skip
_BGE_GEMMA = (
    "{{ bos_token }}A: " + _QUERY + _LINE + "B: " + _DOCUMENT + _LINE
    + "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)  # fmt: skip

PUBLISHED_TEMPLATES: Mapping[PairTemplate, str] = {
    PairTemplate.QWEN3_RERANKER: _QWEN3,
    PairTemplate.MXBAI_RERANK_V2: _MXBAI,
    PairTemplate.BGE_RERANKER_V2_GEMMA: _BGE_GEMMA,
}
