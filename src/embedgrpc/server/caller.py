"""Who makes a call, and what they may do. The same for every door."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache

from embedgrpc.engine.errors import PermissionDeniedError

_KNOWN_NAMES_MAX = 16_384


class Service(StrEnum):
    """What callers may be allowed to do, whatever the door and the method they use."""

    EMBED = "embed"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TOKENIZE = "tokenize"
    # List and describe models.
    MODELS = "models"


class Scope(StrEnum):
    """What callers may do only if they are told so."""

    METRICS = "metrics"
    ADMIN = "admin"


class Proof(StrEnum):
    """How a caller proved who it is; also its class in metrics."""

    ANONYMOUS = "anonymous"
    API_KEY = "api_key"
    TOKEN = "token"  # noqa: S105 - a name
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Need:
    """What a caller needs for a call.

    Attributes:
        service: It must be allowed to use this; None where the handler checks that, because it
            depends on the request.
        scope: It must have this; None for none.
        is_public: Whether anybody may make the call, as with health checks.
        public_as: Anybody may make the call where the setting `public` names this; empty for
            never.
    """

    service: Service | None = None
    scope: Scope | None = None
    is_public: bool = False
    public_as: str = ""

    @property
    def runs_model(self) -> bool:
        """Whether a model may read what such a call holds."""
        return self.service is not Service.TOKENIZE and self.service is not Service.MODELS


PUBLIC = Need(is_public=True)
ANY_CALLER = Need()


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The limits of one caller; None where it has none of its own.

    Attributes:
        requests_per_s: Requests in a second, on average; 0 for no limit.
        request_burst: Requests at once; 0 for those of a second.
        tokens_per_min: Tokens of inputs in a minute, on average; 0 for no limit.
        token_burst: Tokens at once; 0 for those of a minute.
        max_calls: Open calls; 0 for no limit.
    """

    requests_per_s: float | None = None
    request_burst: int | None = None
    tokens_per_min: int | None = None
    token_burst: int | None = None
    max_calls: int | None = None


NO_LIMITS = CallerLimits()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    Attributes:
        name: Its name: the unit of fairness, weights, rates and quotas. Without authentication the
            address, or what `caller_metadata` says.
        proof: How it proved that.
        scopes: What it may do beyond calling models; see `Scope`.
        services: What it may call; None for everything.
        models: Patterns of the names of models that it may use, with `*`; None for all models.
        limits: Its own limits.
    """

    name: str
    proof: Proof = Proof.ANONYMOUS
    scopes: frozenset[str] = frozenset()
    services: frozenset[Service] | None = None
    models: tuple[str, ...] | None = None
    limits: CallerLimits = field(default=NO_LIMITS)

    def may_use_model(self, names: tuple[str, ...]) -> bool:
        """Return whether it may use a model.

        Args:
            names: The id of the model and its aliases: one that is allowed is enough.
        """
        return self.models is None or any(
            fnmatchcase(name, pattern) for pattern in self.models for name in names
        )

    def may_use(self, service: Service) -> bool:
        """Return whether it may use a service."""
        return self.services is None or service in self.services

    def check(self, need: Need) -> None:
        """Check that it may make a call.

        Raises:
            PermissionDeniedError: It may not.
        """
        if need.service is not None:
            self.check_service(need.service)
        if need.scope is not None:
            self.check_scope(need.scope)

    def check_service(self, service: Service) -> None:
        """Check that it may use a service.

        Raises:
            PermissionDeniedError: It may not.
        """
        if not self.may_use(service):
            raise PermissionDeniedError(
                f"{self.name} may not use {service.value}",
                metadata={"label": "SERVICE_DENIED", "service": service.value},
            )

    def check_scope(self, scope: Scope) -> None:
        """Check that it has a scope.

        Raises:
            PermissionDeniedError: It does not.
        """
        if scope not in self.scopes:
            raise PermissionDeniedError(
                f"{self.name} lacks the scope {scope.value}",
                metadata={"label": "SCOPE_MISSING", "scope": scope.value},
            )


@lru_cache(_KNOWN_NAMES_MAX)
def anonymous(name: str, *, has_rights: bool = True) -> Caller:
    """Return a caller that did not prove who it is.

    Args:
        name: Its address, or what a trusted proxy says of it.
        has_rights: Whether it may use services without such a proof.
    """
    return Caller(name) if has_rights else Caller(name, services=frozenset())


# The server's own work, such as the canaries of health, may use everything.
_SERVER = Caller("")
_current: ContextVar[Caller] = ContextVar("caller", default=_SERVER)


def set_current_caller(caller: Caller) -> None:
    """Make a caller that of the running task and of the tasks that it starts."""
    _current.set(caller)


def current_caller() -> Caller:
    """Return who makes the running call; outside of calls, the server itself."""
    return _current.get()
