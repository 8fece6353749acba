"""Prepares models that run on Triton servers. At most their tokenizer runs in this process."""

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
from embedgrpc.libraries.arrays import MakeInput
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.remote.fingerprint import (
    ServedFingerprint,
    find_fingerprint,
    hash_text_model,
)
from embedgrpc.models.remote.inputs import plan_inputs
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
# Of a fingerprint in a message.
_FINGERPRINT_CHARACTERS = 12


def prepare_on_triton(
    model: ModelSettings,
    settings: Settings,
    loop: asyncio.AbstractEventLoop | None,
    children: ChildGroup,
    *,
    prepare_fallback: Callable[[], PreparedModel],
) -> PreparedModel:
    """Connect to the servers of a model, and read its files. Blocks for seconds.

    Args:
        model: The settings of a model whose source names servers.
        settings: The settings of the server.
        loop: Runs the calls to Triton; None to run them in a new thread.
        children: Ends the process that reads the model's files.
        prepare_fallback: Prepares the model's fallback. Called if the model has one, after the
            connection is made.

    Raises:
        ModelError: Its files cannot be used, or do not fit what the servers serve, or its
            fallback is another model.
        BackendUnreachableError: No server can be reached, or none has the model.
        BackendError: The model takes neither token ids nor texts, or its fallback cannot be
            loaded.
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
        fallback = prepare_fallback() if model.fallback else None
        if fallback is not None:
            failing.callback(fallback.backend.close)
        prepared = _TritonModel(model, settings, place, connection, fallback, children).prepare()
        failing.pop_all()
    return prepared


def _check_text_settings(model: ModelSettings) -> None:
    for name in ("files", "fallback", "escape_special_tokens"):
        if getattr(model, name):
            raise ModelError(
                f"{name} is set, but {model.source} takes texts and tokenizes them itself"
            )


@dataclass(frozen=True, slots=True)
class _TritonModel:
    model: ModelSettings
    settings: Settings
    place: TritonSource
    connection: Connection
    fallback: PreparedModel | None
    children: ChildGroup

    @property
    def graph(self) -> ServedGraph:
        return self.connection.graph

    @property
    def outputs(self) -> Mapping[str, tuple[int | None, ...]]:
        return {tensor.name: tensor.dims for tensor in self.graph.outputs}

    def prepare(self) -> PreparedModel:
        return self._prepare_for_ids() if self.graph.text is None else self._prepare_for_texts()

    def _prepare_for_ids(self) -> PreparedModel:
        """Prepare a model that takes token ids."""
        parameters, name = self.graph.parameters, self.place.model
        files = self._find_files(parameters)
        # `triton-repo` writes this parameter, and names outputs as embedgrpc does.
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
        return prepared if self.fallback is None else self._join(prepared, self.fallback)

    def _read(
        self, validation: Validation, validated: FileDigests
    ) -> tuple[properties.ModelProperties, Tokenizer]:
        """Read the files of a model that a child process has read without harm."""
        files = validation.files
        described = properties.read(files, validation.overrides, served=validation.served)
        if self.fallback is not None and files is self.fallback.files:
            return described, self.fallback.tokenizer
        digest = validated.digest_of(
            find_tokenizer_file(described.transformer_folder), files.folder
        )
        escape = validation.escape_special_tokens
        tokenizer = Tokenizer.load(described, escape_special_tokens=escape, digest=digest)
        return described, tokenizer

    def _prepare_for_texts(self) -> PreparedModel:
        """Prepare a model that takes texts: no file of it is read."""
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

    def _join(self, prepared: PreparedModel, fallback: PreparedModel) -> PreparedModel:
        """Add the fallback, which runs the model while no server can be reached.

        Raises:
            ModelError: The fallback is another model.
        """
        served, here = prepared.graph.content_hash, fallback.graph.content_hash
        if served != here:
            declared = self.graph.parameters.get(FINGERPRINT_PARAMETER, "")
            # People can find the declared fingerprint, so show it unless it equals the fallback's.
            served = declared if declared not in ("", here) else served
            raise ModelError(
                f"{self.model.source} has the fingerprint {served[:_FINGERPRINT_CHARACTERS]}, and"
                f" its fallback {self.model.fallback} {here[:_FINGERPRINT_CHARACTERS]}: write the"
                " fallback's source to Triton with `embedgrpc triton-repo` and the same settings,"
                " or set fallback to the model that runs there"
            )
        backend = FallbackBackend(
            prepared.backend, self.connection.availability, fallback.backend, model=self.model.name
        )
        return replace(prepared, backend=backend, availability=backend.availability)

    def _find_files(self, parameters: Mapping[str, str]) -> source.ModelFiles:
        if self.model.files:
            return source.resolve(self.model.files)
        if self.fallback is not None:
            return self.fallback.files
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
                f"{error}; {SOURCE_PARAMETER} in Triton's configuration of {self.place.model} names"
                " that source: set files for this model instead"
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
        """Return what identifies a model without its weights: its place, versions and outputs."""
        outputs = [f"{one.name} {one.datatype} {one.dims}" for one in self.graph.outputs]
        place = [*sorted(self.place.endpoints), self.place.model, self.place.version]
        return [*place, *self.graph.versions, *sorted(outputs)]

    def _count_tokens(self, max_tokens: int, *, unit: int = 1) -> int:
        """Return the most tokens, or smaller units, of a batch: at most those of one request."""
        tokens = unit * default_batch_tokens(on_gpu=self.graph.on_gpu)
        return min(tokens, max_tokens * self.graph.batch_max) if self.graph.batch_max else tokens
