"""Evaluates a model over HTTP and in this process with MTEB, on tasks that need no network."""

import json
import sys

import mteb
from mteb.mocks import mock_tasks
from mteb.models import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper
from sentence_transformers import SentenceTransformer

TASKS = (
    "MockSTSTask",
    "MockRetrievalTask",
    "MockInstructionRetrieval",
    "MockRerankingTask",
    "MockClassificationTask",
    "MockPairClassificationTask",
    "MockBitextMiningTask",
    "MockSummarizationTask",
)


def score(model: object, task: str) -> float:
    """Return the main score of a task."""
    made = getattr(mock_tasks, task)()
    result = mteb.evaluate(model, made, cache=None, overwrite_strategy="always")
    return float(result.task_results[0].get_score())


asked = json.load(sys.stdin)
served = OpenAIAPIEncodeWrapper(asked["url"], asked["model"], use_chat_template=False)
local = SentenceTransformer(asked["folder"], device="cpu")
ranker = OpenAIAPIRerankWrapper(asked["url"], asked["reranker"])
print(
    json.dumps(
        {
            "served": {task: score(served, task) for task in TASKS},
            "local": {task: score(local, task) for task in TASKS},
            "reranked": score(ranker, "MockRerankingTask"),
        }
    )
)
