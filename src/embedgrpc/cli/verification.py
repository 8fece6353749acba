"""The checks of `embedgrpc verify`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from embedgrpc.cli.deviation import compare, is_finite, length_gap
from embedgrpc.cli.reference import PassedRoute, find_reference
from embedgrpc.cli.runners import Item, LocalRunner, ModelOutputs, Runner
from embedgrpc.cli.sample_texts import pair_up, read_texts, sample_texts
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING, TOKEN_VECTORS
from embedgrpc.models.kinds import Kind, TextRole, WeightType
from embedgrpc.server.loading import loading
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.loading.prepared_model import PreparedModel, PreparedRoutes
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

# Longer sequences are not tried, so that a check takes seconds.
_TOKENS_MAX = 2048
_BATCH_SEQUENCES = 8
_BATCH_TOKENS = 4096
_SAME_TEXT_TOLERANCE = 1e-6
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: The check in a word or two.
        passed: Whether it passed; None if nothing was checked.
        found: One readable line.
    """

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks of a model.

    Attributes:
        settings: The settings of the server that would run it.
        model: The model.
        against: The model to compare with; None for sentence-transformers.
        texts: A file of texts to run; None for the built-in texts.
        tolerance: The largest difference between two numbers that passes.
    """

    settings: Settings
    model: ModelSettings
    against: ModelSettings | None
    texts: Path | None
    tolerance: float

    def checks(self, resources: ExitStack) -> Iterator[Check]:
        """Run the checks, and yield the result of each.

        Args:
            resources: Closes the models.

        Raises:
            ModelError: A source cannot be used, or the two cannot be compared.
            DeviceError: The device cannot be used.
            BackendError: A graph cannot be loaded, or a run failed.
        """
        routes = self._prepare(self.model, resources)
        others = self._prepare(self.against, resources) if self.against else None
        by_role = routes.properties.by_role
        for name, model in routes.by_route.items():
            role = next(role for role, passed in by_role.items() if passed == name)
            runner = self._new_runner(self.model, model, role, name)
            for check in self._check_route(runner, others):
                yield replace(check, name=f"{name}: {check.name}") if name else check

    def _check_route(self, runner: LocalRunner, others: PreparedRoutes | None) -> Iterator[Check]:
        """Check one route of a model, by texts that pass it."""
        model = runner.model
        revision = model.files.revision or "without a revision"
        yield Check("files", True, f"{model.files.folder}, {revision}")
        yield Check("graph", True, _describe_graph(model))
        items = self._choose_items(runner)
        yield _check_texts(runner, items)
        outputs = runner.run(items)
        yield from self._check_alone(runner, items, outputs)
        other = self._find_other(runner, others)
        if other is None:
            table = runner.model.properties.table
            library = "model2vec" if table and table.of_model2vec else "sentence-transformers"
            found = f"not compared: install {library}, or give --against"
            yield Check("reference", None, found)
        else:
            yield from self._check_against(outputs, other, items)

    def _prepare(self, named: ModelSettings, resources: ExitStack) -> PreparedRoutes:
        routes = loading.prepare_routes(ServedModel(named), self.settings, loading.open_onnx)
        resources.callback(routes.close)
        return routes

    def _new_runner(
        self, named: ModelSettings, model: PreparedModel, role: TextRole | None, route: str
    ) -> LocalRunner:
        tokens = model.properties.max_tokens
        characters = self.settings.max_characters_per_token * tokens
        return LocalRunner(named.source, model, min(tokens, _TOKENS_MAX), characters, role, route)

    def _choose_items(self, runner: LocalRunner) -> Sequence[Item]:
        texts = read_texts(self.texts) if self.texts else self._sample(runner)
        if runner.model.properties.kind is Kind.EMBEDDING:
            return texts
        pairs = pair_up(texts)
        if runner.model.properties.kind is Kind.CROSS_ENCODER:
            return pairs
        # A classifier may be for texts, for pairs, or for both.
        return [*texts, *pairs] if runner.model.tokenizer.accepts_pairs else texts

    def _sample(self, runner: LocalRunner) -> Sequence[str]:
        names = runner.model.tokenizer.added_tokens
        return sample_texts(runner.max_tokens, names, max_characters=runner.max_characters)

    def _check_alone(
        self, runner: LocalRunner, items: Sequence[Item], outputs: ModelOutputs
    ) -> Iterator[Check]:
        for name, rows in outputs.items():
            yield Check(name, is_finite(rows), f"shape {_shape(rows)}, all numbers finite")
        if runner.model.properties.normalized:
            # A static model has no vector for a text of unknown tokens; serving refuses it.
            is_static = runner.model.properties.table is not None
            rows = [row for row in outputs[SENTENCE_EMBEDDING] if not is_static or row.any()]
            gap = length_gap(rows)
            yield Check("unit length", gap <= _LENGTH_TOLERANCE, f"lengths within {gap:.1e} of 1")
        # Our int8 graphs are as independent of the batch as float32; exported ones seldom are.
        ours = runner.model.properties.weight_type is WeightType.INT8
        exact = ours or runner.model.graph.weight_type == "float32"
        exact = exact and runner.model.backend.device == "cpu"
        limit = _SAME_TEXT_TOLERANCE if exact else self.tolerance
        sequences = runner.tokenize(items)
        lengths = [len(sequence.input_ids) for sequence in sequences]
        for kind, batch in (("batched", like_lengths), ("padded", unlike_lengths)):
            again = runner.run_batches(sequences, batch(lengths))
            for name, rows in outputs.items():
                deviation = compare(rows, again[name])
                passed = deviation.number_max <= limit * _size_of(rows)
                yield Check(kind, passed, f"{name} against alone: {deviation}")

    def _find_other(self, runner: LocalRunner, others: PreparedRoutes | None) -> Runner | None:
        if self.against and others:
            # A model without routes computes every text in one way.
            by_role = others.properties.by_role
            name = by_role.get(runner.role, next(iter(by_role.values())))
            return self._new_runner(self.against, others.by_route[name], runner.role, name)
        model, name = runner.model, runner.route
        return find_reference(
            model.files,
            model.properties,
            max_tokens=runner.max_tokens,
            passed=PassedRoute(name, runner.role, runner.prompt) if name else None,
        )

    def _check_against(
        self, outputs: ModelOutputs, other: Runner, items: Sequence[Item]
    ) -> Iterator[Check]:
        theirs = other.run(items)
        # First the vectors of tokens, of which the others are made.
        names = sorted(outputs, key=lambda name: name != TOKEN_VECTORS)
        shared = [name for name in names if name in theirs]
        if not shared:
            raise ModelError(
                f"{other.name} gives {', '.join(theirs)}, which cannot be compared with "
                f"{', '.join(outputs)}"
            )
        for name in shared:
            deviation = compare(outputs[name], theirs[name])
            found = f"{name} against {other.name}: {deviation}"
            # The vectors of tokens have no fixed length.
            size = _size_of(theirs[name]) if name == TOKEN_VECTORS else 1.0
            passed = deviation.number_max <= self.tolerance * size
            if not passed:
                found += f", worst at text {deviation.worst % len(items) + 1}"
            yield Check("reference", passed, found)


def _size_of(rows: Sequence[FloatArray]) -> float:
    """Return the largest number, at least 1: errors grow with the numbers that have them."""
    return max(1.0, *(float(abs(row).max(initial=0.0)) for row in rows))


def _check_texts(runner: LocalRunner, items: Sequence[Item]) -> Check:
    sequences = runner.tokenize(items)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    cut = sum(sequence.truncated for sequence in sequences)
    found = f"{len(items)}, of {min(lengths)} to {max(lengths)} tokens, {cut} truncated"
    return Check("texts", True, found)


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of sequences of similar length, with little padding."""
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        count = len(batches[-1]) + 1
        if count > _BATCH_SEQUENCES or (count > 1 and count * lengths[index] > _BATCH_TOKENS):
            batches.append([])
        batches[-1].append(index)
    return batches


def unlike_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of a short and a long sequence, with much padding."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    half = len(order) // 2
    pairs = [[short, long] for short, long in zip(order[:half], reversed(order), strict=False)]
    return [*pairs, [order[half]]] if len(order) % 2 else pairs


def _shape(rows: Sequence[object]) -> str:
    shapes = {getattr(row, "shape", ()) for row in rows}
    return " x ".join(str(size) for size in shapes.pop()) if len(shapes) == 1 else "of each text"


def _describe_graph(model: PreparedModel) -> str:
    known = [model.graph.weight_type] if model.graph.weight_type else []
    if model.graph.weight_bytes:
        known.append(f"{model.graph.weight_bytes / 1e6:.1f} MB")
    known.append(f"on {model.backend.device}: {model.graph.place}")
    return ", ".join(known)
