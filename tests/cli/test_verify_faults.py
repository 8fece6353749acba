"""`verify` finds each difference from the reference that this project once had.

Each test takes the mended behaviour away, and compares with the model as it is.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.cli.runners import LocalRunner, Runner
from embedgrpc.cli.verification import Verification
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs import build, identity
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers import chat_template, rebuilt, tokenizer
from embedgrpc.models.tokenizers.added_tokens import TokenizerSettings
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.loading.prepared_model import PreparedModel, PreparedRoutes, RunnableGraph
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from tests.models.breaking import edit_graph, ignore_mask
from tests.models.runner import copy_fixture, edit_json

_CHARACTERS = Settings.model_fields["max_characters_per_token"].default
Patch = pytest.MonkeyPatch
PLAIN_MODALITIES = {"text": {"method": "forward", "method_output_name": "logits"}}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was mended.

    Attributes:
        fixture: The fixture that shows it.
        take_away: Takes the mended behaviour away.
        edit: Changes the folder first, so that it shows the fault.
    """

    fixture: str
    take_away: Callable[[Patch], None]
    edit: Callable[[Path], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstItself(Verification):
    """Compares with the same model, loaded before the fault was put back."""

    right: LocalRunner

    def _prepare(self, named: ModelSettings, resources: ExitStack) -> PreparedRoutes:
        loaded = _load(Path(named.source), self.settings.cache_dir, resources)
        return PreparedRoutes.of(loaded.model)

    def _find_other(self, runner: LocalRunner, others: PreparedRoutes | None) -> Runner:
        del runner, others
        return self.right


def _set(target: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(target, name, value)


def _edit(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **changes)


def _ignore_template(patch: Patch) -> None:
    patch.setattr(tokenizer, "read_chat_template", lambda _: None)


def _only_text(folder: Path) -> None:
    """Let the model not use its chat template."""
    settings = {"transformer_task": "sequence-classification", "modality_config": PLAIN_MODALITIES}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def _ignore_modalities(patch: Patch) -> None:
    read = chat_template.read_chat_template

    def read_with_template(described: ModelProperties) -> Any:
        path = described.transformer_folder / "sentence_bert_config.json"
        path.unlink(missing_ok=True)
        return read(described)

    patch.setattr(tokenizer, "read_chat_template", read_with_template)


def _drop_arguments(patch: Patch) -> None:
    patch.setattr(properties, "merge_arguments", lambda config, _: config)


def _always_first_task(patch: Patch) -> None:
    _change_read(patch, lambda found: replace(found, tasks=dict.fromkeys(found.tasks, 0)))


def _keep_all_terms(patch: Patch) -> None:
    _change_read(patch, lambda found: replace(found, max_active_dims=0))


def _change_read(patch: Patch, change: Callable[[ModelProperties], ModelProperties]) -> None:
    read = properties.read
    patch.setattr(properties, "read", lambda files: change(read(files)))


def _cut_end(patch: Patch) -> None:
    def find(folder: Path, root: Path, config: Any) -> Any:
        del folder, root
        return Truncation.END, config, ""

    patch.setattr(properties, "find_truncation", find)


def _keep_no_token(patch: Patch) -> None:
    patch.setattr(rebuilt, "add_tokens", lambda *_, **__: [])


def _follow_the_file(patch: Patch) -> None:
    patch.setattr(rebuilt, "is_rebuilt", lambda _: False)


def _split_nothing(patch: Patch) -> None:
    patch.setattr(TokenizerSettings, "split_special_tokens", property(lambda _: False))


FAULTS = {
    "chat template": Fault("cross-qwen3-template", _ignore_template),
    "modality_config": Fault("cross-qwen3-template", _ignore_modalities, _only_text),
    "truncation side": Fault("bert-truncation-left", _cut_end),
    "truncation side of pairs": Fault(
        "cross-bert", _cut_end, _edit("tokenizer_config.json", truncation_side="left")
    ),
    "added tokens": Fault("bert-added-tokens", _keep_no_token),
    "rebuilt tokenizer": Fault("xlmr-metaspace", _follow_the_file),
    "task": Fault(
        "task-by-prompt",
        _always_first_task,
        lambda folder: edit_json(
            folder / "config_sentence_transformers.json",
            default_prompt_name=json.loads((folder / "config.json").read_text())[
                "lora_adaptations"
            ][1],
        ),
    ),
    "max_active_dims": Fault(
        "splade-bert",
        _keep_all_terms,
        _edit("config_sentence_transformers.json", max_active_dims=5),
    ),
    "truncate_dim": Fault(
        "bert-mean",
        _set(properties, "_read_kept", lambda *_: 0),
        _edit("config_sentence_transformers.json", truncate_dim=8),
    ),
    "arguments": Fault(
        "bert-mean",
        _drop_arguments,
        _edit("sentence_bert_config.json", processor_kwargs={"truncation_side": "left"}),
    ),
    "split_special_tokens": Fault(
        "bert-mean", _split_nothing, _edit("tokenizer_config.json", split_special_tokens=True)
    ),
    "token types": Fault("cross-no-types", _set(identity, "needs_types", lambda _: False)),
    "blanks": Fault("bert-mean", _set(tokenizer, "collapses_blanks", lambda _: False)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_comes_back_is_found(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """The model passes as it is, and fails with the fault, by the comparison."""
    fault = FAULTS[name]
    folder = copy_fixture(fault.fixture, tmp_path)
    fault.edit(folder)
    with ExitStack() as resources:
        right = _load(folder, tmp_path / "cache", resources)
        assert _find_wrong(folder, right) == []
        fault.take_away(monkeypatch)
        assert _find_wrong(folder, right) == ["reference"]


def test_results_that_depend_on_the_batch_are_found(tmp_path: Path, monkeypatch: Patch) -> None:
    """A graph that reads padding fails the checks of batches, where loading does not refuse it."""
    folder = copy_fixture("bert-cls", tmp_path)
    with ExitStack() as resources:
        right = _load(folder, tmp_path / "cache", resources)
        edit_graph(ignore_mask)(folder)
        with pytest.raises(ModelError, match="depends on the padding"):
            _find_wrong(folder, right)
        monkeypatch.setattr(build, "check_batching", lambda *_, **__: None)
        assert "padded" in _find_wrong(folder, right)


def _find_wrong(folder: Path, right: LocalRunner) -> list[str]:
    """Return the names of the checks that a folder fails."""
    check = AgainstItself(
        settings=Settings(cache_dir=folder.with_name("cache"), device="cpu"),
        model=ModelSettings(source=str(folder)),
        against=None,
        texts=None,
        tolerance=1e-4,
        right=right,
    )
    with ExitStack() as resources:
        found = list(check.checks(resources))
    return sorted({one.name for one in found if one.passed is False})


def _load(folder: Path, cache_dir: Path, resources: ExitStack) -> LocalRunner:
    """Load a model without a child process, which would have no fault."""
    files = resolve(str(folder))
    described = properties.read(files)
    built = prepare(files, described, cache_dir=cache_dir)
    backend = OnnxBackend(built.path, device="cpu")
    resources.callback(backend.close)
    graph = RunnableGraph(
        outputs=built.outputs,
        content_hash=built.content_hash,
        weight_type=built.weight_type,
        weight_bytes=built.weight_bytes,
        place=str(built.path),
    )
    model = PreparedModel(files, described, Tokenizer.load(described), graph, backend, 512)
    tokens = described.max_tokens
    return LocalRunner("right", model, tokens, _CHARACTERS * tokens)
