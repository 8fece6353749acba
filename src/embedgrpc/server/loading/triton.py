"""Loads models that run on Triton servers: here is at most what tokenizes for them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from embedgrpc.backends.fallback import FallbackBackend
from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.connection import Connection
from embedgrpc.backends.triton.served_graph import ServedGraph
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.remote.fingerprint import (
    ServedFingerprint,
    find_fingerprint,
    hash_text_model,
)
from embedgrpc.models.remote.inputs import MakeInput, plan_inputs
from embedgrpc.models.remote.outputs import ServedOutput, find_token_outputs, plan_outputs
from embedgrpc.models.remote.text_model import describe_text_model
from embedgrpc.models.sources import source
from embedgrpc.models.sources.triton_parameters import FINGERPRINT_PARAMETER, SOURCE_PARAMETER
from embedgrpc.models.sources.triton_source import TritonSource, parse_triton_source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.validation.child_process import ChildGroup
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from embedgrpc.server.loading.prepared_model import (
    OVERHEAD_TOKENS,
    PreparedModel,
    RunnableGraph,
    default_batch_tokens,
)
from embedgrpc.server.loading.triton_tls import read_tls
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

_logger = logging.getLogger(__name__)

# Bytes of text that take about as long as a token.
_TOKEN_BYTES = 4
# How much of a fingerprint a message names.
_FINGERPRINT_CHARACTERS = 12


def prepare_on_triton(
    model: ModelSettings,
    settings: Settings,
    loop: asyncio.AbstractEventLoop | None,
    children: ChildGroup,
    *,
    load_twin: Callable[[], PreparedModel],
) -> PreparedModel:
    """Loads a model that runs on Triton. Blocks; not on the loop.

    Args:
        model: With a source that names servers.
        settings: How.
        loop: The event loop that calls are to run on; None to run one in a thread.
        children: Ends early the process that reads the model's files.
        load_twin: Loads the model's fallback. Called where it has one, and once a server is there.

    Returns:
        The model.

    Raises:
        ModelError: Its files cannot be used, or do not fit what the servers serve, or its
            fallback is another model.
        BackendUnreachableError: No server is there, or none has the model.
        BackendError: The model can be run neither with token ids nor with texts, or its fallback
            cannot be loaded.
        DeviceError: The device cannot be used for its fallback.
    """
    place = parse_triton_source(model.source)
    connection = Connection(
        place.endpoints,
        model=place.model,
        version=place.version,
        tls=read_tls(settings) if place.secure else None,
        timeout_s=settings.triton_timeout_s,
        loop=loop,
    )
    with ExitStack() as failing:
        failing.callback(connection.close)
        if connection.graph.text is not None:
            _check_text_settings(model)
        twin = load_twin() if model.fallback else None
        if twin is not None:
            failing.callback(twin.backend.close)
        prepared = _TritonModel(model, settings, place, connection, twin, children).load()
        failing.pop_all()
    return prepared


def _check_text_settings(model: ModelSettings) -> None:
    for name in ("files", "fallback", "escape_special_tokens"):
        if getattr(model, name):
            raise ModelError(
                f"{name} is set, but {model.source} takes texts: it tokenizes by itself"
            )


@dataclass(frozen=True, slots=True)
class _TritonModel:
    model: ModelSettings
    settings: Settings
    place: TritonSource
    connection: Connection
    twin: PreparedModel | None
    children: ChildGroup

    @property
    def graph(self) -> ServedGraph:
        return self.connection.graph

    @property
    def outputs(self) -> Mapping[str, tuple[int | None, ...]]:
        return {tensor.name: tensor.dims for tensor in self.graph.outputs}

    def load(self) -> PreparedModel:
        return self._load_for_ids() if self.graph.text is None else self._load_for_texts()

    def _load_for_ids(self) -> PreparedModel:
        """Loads a model that takes token ids."""
        parameters, name = self.graph.parameters, self.place.model
        files = self._find_files(parameters)
        # Whoever writes the one parameter gives the outputs the names that they have here.
        ours = FINGERPRINT_PARAMETER in parameters
        validation = Validation(
            files=files,
            overrides=self.model.overrides,
            served=find_token_outputs(self.outputs, ours=ours),
            escape_special_tokens=self.model.escape_special_tokens,
            build=False,
            cache_dir=self.settings.cache_dir,
            limits=self.settings.validation_limits,
        )
        described, tokenizer = load_validated(
            validation, self.children, lambda validated: self._read(validation, validated)
        )
        planned = plan_outputs(self.outputs, described, ours=ours, model=name)
        inputs = [tensor.name for tensor in self.graph.inputs]
        fingerprint = self._find_fingerprint(files, described)
        prepared = PreparedModel(
            files=files,
            properties=described,
            tokenizer=tokenizer,
            graph=self._describe_graph(planned, fingerprint),
            backend=self._open_backend(planned, plan_inputs(inputs, described, model=name)),
            batch_tokens=self._count_tokens(described.max_tokens),
            batch_sequences=self.graph.batch_max,
            availability=self.connection.availability,
        )
        return prepared if self.twin is None else self._join(prepared, self.twin)

    def _read(
        self, validation: Validation, validated: FileDigests
    ) -> tuple[properties.ModelProperties, Tokenizer]:
        """Reads what was read before without harm."""
        files = validation.files
        described = properties.read(files, validation.overrides, served=validation.served)
        if self.twin is not None and files is self.twin.files:
            return described, self.twin.tokenizer
        digest = validated.digest_of(described.transformer_folder / "tokenizer.json", files.folder)
        escape = validation.escape_special_tokens
        tokenizer = Tokenizer.load(described, escape_special_tokens=escape, digest=digest)
        return described, tokenizer

    def _load_for_texts(self) -> PreparedModel:
        """Loads a model that takes texts, of which nothing is here."""
        described = describe_text_model(self.outputs, self.model.overrides, model=self.place.model)
        planned = plan_outputs(self.outputs, described, ours=False, model=self.place.model)
        declared = self.graph.parameters.get(FINGERPRINT_PARAMETER, "")
        value = hash_text_model(self.model.overrides, declared=declared, place=self._identify())
        return PreparedModel(
            files=source.ModelFiles(self.model.source, Path(), revision=""),
            properties=described,
            tokenizer=Tokenizer.of_bytes(),
            graph=self._describe_graph(planned, ServedFingerprint(value, weight_type="")),
            backend=self._open_backend(planned, {}),
            batch_tokens=self._count_tokens(described.max_tokens, unit=_TOKEN_BYTES),
            batch_sequences=self.graph.batch_max,
            overhead_tokens=OVERHEAD_TOKENS * _TOKEN_BYTES,
            availability=self.connection.availability,
        )

    def _open_backend(
        self, outputs: Mapping[str, ServedOutput], inputs: Mapping[str, MakeInput]
    ) -> TritonBackend:
        return TritonBackend(
            self.connection,
            outputs=outputs,
            inputs=inputs,
            lanes=self.settings.lanes,
        )

    def _describe_graph(
        self, planned: Mapping[str, ServedOutput], fingerprint: ServedFingerprint
    ) -> RunnableGraph:
        return RunnableGraph(
            outputs=tuple(planned),
            content_hash=fingerprint.value,
            weight_type=fingerprint.weight_type,
            weight_bytes=0,
            place=self.model.source,
        )

    def _join(self, prepared: PreparedModel, twin: PreparedModel) -> PreparedModel:
        """Lets the twin run the model while the servers are away.

        Raises:
            ModelError: It is another model.
        """
        served, here = prepared.graph.content_hash, twin.graph.content_hash
        if served != here:
            declared = self.graph.parameters.get(FINGERPRINT_PARAMETER, "")
            # What is declared can be found there, unless it is not that which speaks against it.
            served = declared if declared not in ("", here) else served
            raise ModelError(
                f"{self.model.source} has the fingerprint {served[:_FINGERPRINT_CHARACTERS]}, and"
                f" its fallback {self.model.fallback} {here[:_FINGERPRINT_CHARACTERS]}: write the"
                " fallback's source to Triton with `embedgrpc triton-repo` and the same settings,"
                " or set fallback to the model that runs there"
            )
        backend = FallbackBackend(
            prepared.backend, self.connection.availability, twin.backend, model=self.model.name
        )
        return replace(prepared, backend=backend, availability=backend.availability)

    def _find_files(self, parameters: Mapping[str, str]) -> source.ModelFiles:
        if self.model.files:
            return source.resolve(self.model.files)
        if self.twin is not None:
            return self.twin.files
        named = parameters.get(SOURCE_PARAMETER, "")
        if not named:
            raise ModelError(
                f"{self.model.source}: Triton's configuration of the model has no parameter"
                f" {SOURCE_PARAMETER}: set files for this model to the source of its tokenizer"
            )
        try:
            return source.resolve(named)
        except ModelError as error:
            raise type(error)(
                f"{error}; that is what {SOURCE_PARAMETER} says in Triton's configuration of"
                f" {self.place.model}: set files for this model instead"
            ) from None

    def _find_fingerprint(
        self, files: source.ModelFiles, described: properties.ModelProperties
    ) -> ServedFingerprint:
        found = find_fingerprint(
            files,
            described,
            self.model.overrides,
            declared=self.graph.parameters.get(FINGERPRINT_PARAMETER, ""),
            place=self._identify(),
            cache_dir=self.settings.cache_dir,
        )
        if found.contradicted:
            _logger.warning(
                "fingerprint not taken",
                extra={
                    "model": self.model.name,
                    "problem": "the weights here are not those that Triton's configuration names",
                },
            )
        return found

    def _identify(self) -> list[str]:
        """Tells what is known of a model without its weights: where it runs, and what it gives."""
        outputs = [f"{one.name} {one.datatype} {one.dims}" for one in self.graph.outputs]
        place = [*sorted(self.place.endpoints), self.place.model, self.place.version]
        return [*place, *self.graph.versions, *sorted(outputs)]

    def _count_tokens(self, max_tokens: int, *, unit: int = 1) -> int:
        """What a batch may cost, in tokens or smaller units: no more than a request may hold."""
        tokens = unit * default_batch_tokens(on_gpu=self.graph.on_gpu)
        return min(tokens, max_tokens * self.graph.batch_max) if self.graph.batch_max else tokens
