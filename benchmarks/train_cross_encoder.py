"""Trains a small cross-encoder on Cranfield, for the figures of int8.

Runs in the environment that `uv run poe reference` makes, on a CPU in minutes, from the root of the
repository: `.cache/reference/bin/python -m benchmarks.train_cross_encoder MODEL OUT`, where MODEL
is the folder of the default model. Queries whose number is a multiple of 3 are not used: they are
for the figures. Negatives are documents that the default model ranks high but nobody judged
relevant.
"""

import json
import random
import sys
import time
from pathlib import Path

import torch  # type: ignore[import-not-found]  # in the reference's environment
from sentence_transformers import (  # type: ignore[import-not-found]  # likewise
    CrossEncoder,
    SentenceTransformer,
)

_DATA = Path(__file__).parent / "data/cranfield"
_BATCH = 16
_EPOCHS = 1
_TOKENS_MAX = 128
_NEGATIVE_RANKS = range(5, 60)
_RATE = 5e-5


def read_texts(name: str) -> dict[str, str]:
    """Return the texts of a file of the collection by id."""
    lines = (_DATA / name).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {str(row["id"]): row["text"] for row in rows}


def make_pairs(folder: Path) -> list[tuple[str, str, float]]:
    """Return queries, documents and whether they are relevant, shuffled."""
    documents, queries = read_texts("corpus.jsonl"), read_texts("queries.jsonl")
    relevant: dict[str, set[str]] = {}
    for line in (_DATA / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, code = line.split("\t")
        if int(code) > 0:
            relevant.setdefault(query, set()).add(document)
    model = SentenceTransformer(str(folder), device="cpu")
    corpus = model.encode(list(documents.values()), convert_to_tensor=True)
    source, names = random.Random(1), list(documents)  # noqa: S311 - no secret
    pairs = []
    for query in queries:
        if int(query) % 3 == 0 or query not in relevant:
            continue
        ranked = (corpus @ model.encode(queries[query], convert_to_tensor=True)).argsort()
        near = [names[place] for place in reversed(ranked.tolist())]
        good = [one for one in relevant[query] if one in documents]
        bad = [near[rank] for rank in _NEGATIVE_RANKS if near[rank] not in relevant[query]]
        chosen = [(one, 1.0) for one in good]
        chosen += [(one, 0.0) for one in source.sample(bad, min(2 * len(good), len(bad)))]
        pairs += [(queries[query], documents[one], label) for one, label in chosen]
    source.shuffle(pairs)
    return pairs


def main(folder: Path, out: Path) -> None:
    """Train, and save the model."""
    torch.manual_seed(1)
    pairs = make_pairs(folder)
    encoder = CrossEncoder(str(folder), num_labels=1, device="cpu", max_length=_TOKENS_MAX)
    model, tokenizer = encoder.model.train(), encoder.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    steps = _EPOCHS * -(-len(pairs) // _BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    loss_of, began, step = torch.nn.BCEWithLogitsLoss(), time.monotonic(), 0
    for _ in range(_EPOCHS):
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            features = tokenizer(
                [query for query, _, _ in batch],
                [document for _, document, _ in batch],
                padding=True,
                truncation="longest_first",
                max_length=_TOKENS_MAX,
                return_tensors="pt",
            )
            labels = torch.tensor([label for _, _, label in batch])
            loss = loss_of(model(**features).logits[:, 0], labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 20 == 0:
                elapsed_s = time.monotonic() - began
                print(f"{step} of {steps}: loss {loss.item():.3f}, {elapsed_s:.0f} s", flush=True)
    model.eval()
    encoder.save(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
