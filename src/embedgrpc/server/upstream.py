"""Loads models that run on Triton servers: here is only what tokenizes for them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from embedgrpc.backends.fallback import FallbackBackend
from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.channels import TlsFiles
from embedgrpc.backends.triton.connection import Connection
from embedgrpc.backends.triton.messages import Recipe
from embedgrpc.backends.triton.served_graph import ServedGraph
from embedgrpc.models import metadata, source
from embedgrpc.models.errors import ModelError
from embedgrpc.models.served_fingerprint import ServedFingerprint, find_fingerprint
from embedgrpc.models.served_inputs import plan_inputs
from embedgrpc.models.served_outputs import find_forms, plan_outputs
from embedgrpc.models.tokenizer import Tokenizer
from embedgrpc.models.triton_parameters import FINGERPRINT_PARAMETER, SOURCE_PARAMETER
from embedgrpc.models.triton_source import TritonSource, parse_triton_source
from embedgrpc.server.model_settings import ModelSettings
from embedgrpc.server.parts import Parts, RunnableGraph
from embedgrpc.server.settings import Settings

_logger = logging.getLogger(__name__)

# What a batch may cost. It is not measured: that would take the server from others who use it,
# and tell of the network and of them rather than of the model.
_CPU_BATCH_TOKENS = 512
_GPU_BATCH_TOKENS = 8192


# How much of a fingerprint a message names.
_FINGERPRINT_CHARACTERS = 12


def load_upstream(
    model: ModelSettings,
    settings: Settings,
    loop: asyncio.AbstractEventLoop | None,
    *,
    load_twin: Callable[[], Parts],
) -> Parts:
    """Loads a model that runs on Triton. Blocks; not on the loop.

    Args:
        model: With a source that names servers.
        settings: How.
        loop: The event loop that calls are to run on; None to run one in a thread.
        load_twin: Loads the model's fallback. Called where it has one, and once a server is there.

    Returns:
        The parts of the model.

    Raises:
        ModelError: Its files cannot be used, or do not fit what the servers serve, or its
            fallback is another model.
        BackendUnavailableError: No server is there, or none has the model.
        BackendError: The model cannot be run with token ids, or its fallback not loaded.
        DeviceError: The device cannot be used for its fallback.
    """
    place = parse_triton_source(model.source)
    connection = Connection(
        place.endpoints,
        model=place.model,
        version=place.version,
        tls=_read_tls(settings) if place.secure else None,
        timeout_s=settings.triton_timeout_s,
        loop=loop,
    )
    with ExitStack() as failing:
        failing.callback(connection.close)
        twin = load_twin() if model.fallback else None
        if twin is not None:
            failing.callback(twin.backend.close)
        parts = _Upstream(model, settings, place, connection, twin).load()
        failing.pop_all()
    return parts


@dataclass(frozen=True, slots=True)
class _Upstream:
    model: ModelSettings
    settings: Settings
    place: TritonSource
    connection: Connection
    twin: Parts | None

    @property
    def graph(self) -> ServedGraph:
        return self.connection.graph

    def load(self) -> Parts:
        parameters, name = self.graph.parameters, self.place.model
        files = self._find_files(parameters)
        # Whoever writes the one parameter gives the outputs the names that they have here.
        ours = FINGERPRINT_PARAMETER in parameters
        outputs = {tensor.name: tensor.dims for tensor in self.graph.outputs}
        described = metadata.read(
            files, self.model.overrides, served=find_forms(outputs, ours=ours)
        )
        if self.twin is not None and files is self.twin.files:
            tokenizer = self.twin.tokenizer
        else:
            tokenizer = Tokenizer.load(
                files, described, escape_special_tokens=self.model.escape_special_tokens
            )
        planned = plan_outputs(outputs, described, ours=ours, model=name)
        fingerprint = self._find_fingerprint(files, described)
        backend = TritonBackend(
            self.connection,
            recipes={key: Recipe(one.served, one.dims, one.make) for key, one in planned.items()},
            fillings=plan_inputs(
                [tensor.name for tensor in self.graph.inputs], described, model=name
            ),
            lanes=self.settings.lanes,
        )
        parts = Parts(
            files=files,
            metadata=described,
            tokenizer=tokenizer,
            graph=RunnableGraph(
                outputs=tuple(planned),
                content_hash=fingerprint.value,
                weight_type=fingerprint.weight_type,
                weight_bytes=0,
                place=self.model.source,
            ),
            backend=backend,
            batch_tokens=self._count_tokens(described.max_tokens),
            batch_sequences=self.graph.batch_max,
            availability=self.connection.availability,
        )
        return parts if self.twin is None else self._join(parts, self.twin)

    def _join(self, parts: Parts, twin: Parts) -> Parts:
        """Lets the twin run the model while the servers are away.

        Raises:
            ModelError: It is another model.
        """
        served, here = parts.graph.content_hash, twin.graph.content_hash
        if served != here:
            raise ModelError(
                f"{self.model.source} has the fingerprint {served[:_FINGERPRINT_CHARACTERS]}, and"
                f" its fallback {self.model.fallback} {here[:_FINGERPRINT_CHARACTERS]}: write the"
                " fallback's source to Triton with `embedgrpc triton-repo` and the same settings,"
                " or set fallback to the model that runs there"
            )
        backend = FallbackBackend(
            parts.backend, self.connection.availability, twin.backend, model=self.model.name
        )
        return replace(parts, backend=backend, availability=backend.availability)

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
            raise ModelError(
                f"{error}; that is what {SOURCE_PARAMETER} says in Triton's configuration of"
                f" {self.place.model}: set files for this model instead"
            ) from None

    def _find_fingerprint(
        self, files: source.ModelFiles, described: metadata.ModelMetadata
    ) -> ServedFingerprint:
        outputs = [f"{one.name} {one.datatype} {one.dims}" for one in self.graph.outputs]
        place = [*sorted(self.place.endpoints), self.place.model, self.place.version]
        found = find_fingerprint(
            files,
            described,
            self.model.overrides,
            declared=self.graph.parameters.get(FINGERPRINT_PARAMETER, ""),
            place=[*place, *self.graph.versions, *sorted(outputs)],
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

    def _count_tokens(self, max_tokens: int) -> int:
        """What a batch may cost: no more than the server takes in one request."""
        tokens = _GPU_BATCH_TOKENS if self.graph.on_gpu else _CPU_BATCH_TOKENS
        return min(tokens, max_tokens * self.graph.batch_max) if self.graph.batch_max else tokens


def _read_tls(settings: Settings) -> TlsFiles:
    """Reads what TLS needs.

    Raises:
        ModelError: A file cannot be read, or a certificate has no key.
    """
    if bool(settings.triton_certificate_file) != bool(settings.triton_key_file):
        raise ModelError("triton_certificate_file and triton_key_file must be set together")
    names = ("triton_ca_file", "triton_certificate_file", "triton_key_file")
    ca, certificate, key = (_read(name, getattr(settings, name)) for name in names)
    return TlsFiles(ca, certificate, key)


def _read(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ModelError(f"{name} {path} cannot be read: {error.strerror}") from None
