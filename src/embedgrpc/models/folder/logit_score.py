"""Reads how a causal model scores a pair: by the logits of one or two tokens after it.

A folder of sentence-transformers says so in its LogitScore module. Folders that hold a causal model
alone do not say which tokens count, nor how a pair is written, so the configuration must.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.special_tokens import read_vocabulary
from embedgrpc.models.kinds import Activation, PairTemplate

_CAUSAL = "ForCausalLM"
_INPUT_NAME = "causal_logits"


@dataclass(frozen=True, slots=True)
class LogitScore:
    """The tokens whose logits, at a pair's last token, make its score.

    Attributes:
        true_token_id: The token for a relevant document.
        false_token_id: The token for an irrelevant one, whose logit is subtracted; None for none.

    Source: `LogitScore` of sentence-transformers.
    """

    true_token_id: int
    false_token_id: int | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens whose logits are computed."""
        if self.false_token_id is None:
            return (self.true_token_id,)
        return (self.true_token_id, self.false_token_id)

    @classmethod
    def read(cls, path: Path, root: Path) -> "LogitScore":
        """Read the `config.json` of a LogitScore module in the model folder `root`.

        Raises:
            ModelError: It is missing or wrong.
        """
        config = JsonObject.read(path, root)
        if config.text("module_input_name", default=_INPUT_NAME) != _INPUT_NAME:
            raise config.wrong("module_input_name", _INPUT_NAME)
        true_token_id = config.count("true_token_id")
        if true_token_id is None:
            raise config.wrong("true_token_id", "the id of a token")
        return cls(true_token_id, config.count("false_token_id"))


@dataclass(frozen=True, slots=True)
class _Published:
    """How the authors of a model score.

    Attributes:
        tokens: For a relevant and for an irrelevant document; the latter may be empty.
        activation: The function from the logit to the score.
    """

    tokens: tuple[str, str]
    activation: Activation


# Sources: the model cards of Qwen3-Reranker and bge-reranker-v2-gemma; `MxbaiRerankV2` of
# mxbai-rerank.
_PUBLISHED: Mapping[PairTemplate, _Published] = {
    PairTemplate.QWEN3_RERANKER: _Published(("yes", "no"), Activation.SIGMOID),
    PairTemplate.MXBAI_RERANK_V2: _Published(("1", "0"), Activation.IDENTITY),
    PairTemplate.BGE_RERANKER_V2_GEMMA: _Published(("Yes", ""), Activation.IDENTITY),
}


def published_activation(template: PairTemplate | None) -> Activation | None:
    """Return the activation that belongs to a published template."""
    return None if template is None else _PUBLISHED[template].activation


def find_logit_score(
    found: LogitScore | None,
    config: JsonObject,
    root: Path,
    *,
    template: PairTemplate | None,
    true_token: str,
    false_token: str,
) -> LogitScore | None:
    """Return the tokens that make a causal model's score; None if the model does not score so.

    Args:
        found: Those of the LogitScore module, if any.
        config: `config.json`.
        root: The model's folder.
        template: The configured template.
        true_token: The configured token for a relevant document; empty for none.
        false_token: The configured token for an irrelevant one; empty for none.

    Raises:
        ModelError: The configuration does not fit the model, or a token is not in the vocabulary.
    """
    named = [
        name
        for name, value in (
            ("pair_template", template), ("true_token", true_token), ("false_token", false_token),
        )
        if value
    ]  # fmt: skip
    if named:
        architectures = config.values.get("architectures")
        names = architectures if isinstance(architectures, list) else []
        if found is None and not any(str(name).endswith(_CAUSAL) for name in names):
            raise ModelError(
                f"{config.path}: {named[0]} is set, but architectures has no {_CAUSAL}"
            )
        if found is None or true_token or false_token:
            wanted = _choose_tokens(template, true_token, false_token)
            found = _resolve(found, config.path.parent, root, wanted)
    if found is not None:
        entries = config.count("vocab_size")
        worst = max(found.token_ids)
        if entries is not None and worst >= entries:
            raise config.wrong("vocab_size", f"more than {worst}, a token that the score needs")
    return found


def _choose_tokens(
    template: PairTemplate | None, true_token: str, false_token: str
) -> tuple[str, str]:
    """Return the configured tokens, or those that belong to the template."""
    if template is None or true_token:
        return true_token, false_token
    published = _PUBLISHED[template].tokens
    return published[0], false_token or published[1]


def _resolve(
    found: LogitScore | None, folder: Path, root: Path, wanted: tuple[str, str]
) -> LogitScore:
    """Return the score with the configured tokens, for a relevant and an irrelevant document."""
    vocabulary = read_vocabulary(folder, root)
    ids: list[int | None] = []
    for setting, token in zip(("true_token", "false_token"), wanted, strict=True):
        if token and token not in vocabulary:
            raise ModelError(
                f"{folder / 'tokenizer.json'}: the vocabulary has no token {token!r}, which is the "
                f"{setting} of this model in the configuration"
            )
        ids.append(vocabulary[token] if token else None)
    true_token_id, false_token_id = ids
    if true_token_id is not None:
        return LogitScore(true_token_id, false_token_id)
    if found is None:
        raise ModelError(f"{folder}: false_token is set: set true_token too")
    return replace(found, false_token_id=false_token_id)
