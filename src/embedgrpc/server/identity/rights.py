"""What callers may do, as files and tokens write it."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from embedgrpc.server.caller import Caller, CallerLimits, Proof, Scope, Service
from embedgrpc.server.settings.configuration import did_you_mean
from embedgrpc.server.settings.model_settings import NAME_CHARACTERS_MAX

CALLER_NAME_CHARACTERS_MAX = 256
# Printable ASCII without what separates callers in the setting `caller_weights`.
_CALLER_NAME = re.compile(rf"[!-+\--~]{{1,{CALLER_NAME_CHARACTERS_MAX}}}")
_PATTERNS_MAX = 256
_LIMIT_MAX = 2**31


class Limits(BaseModel):
    """The limits of a caller; see `CallerLimits`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    requests_per_s: Annotated[float, Field(ge=0, le=_LIMIT_MAX)] | None = None
    request_burst: Annotated[int, Field(ge=0, le=_LIMIT_MAX)] | None = None
    tokens_per_min: Annotated[int, Field(ge=0, le=_LIMIT_MAX)] | None = None
    token_burst: Annotated[int, Field(ge=0, le=_LIMIT_MAX)] | None = None
    max_calls: Annotated[int, Field(ge=0, le=_LIMIT_MAX)] | None = None


class Rights(BaseModel):
    """What a caller may do; without a key, everything but what needs a scope.

    Attributes:
        services: What it may call.
        models: Patterns of the names of the models that it may use.
        scopes: What it may do beyond that.
        limits: Its own limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: tuple[Service, ...] | None = None
    models: tuple[str, ...] | None = None
    scopes: tuple[Scope, ...] = ()
    limits: Limits = Limits()

    @field_validator("services", "models")
    @classmethod
    def _check_not_empty(cls, value: Sequence[str] | None) -> Sequence[str] | None:
        if value is not None and not value:
            raise ValueError("must not be empty: leave the key out to allow everything")
        return value

    @field_validator("models")
    @classmethod
    def _check_patterns(cls, value: Sequence[str] | None) -> Sequence[str] | None:
        if value is not None and len(value) > _PATTERNS_MAX:
            raise ValueError(f"has {len(value)} patterns; the limit is {_PATTERNS_MAX}")
        if value and any(not 1 <= len(one) <= NAME_CHARACTERS_MAX for one in value):
            raise ValueError(f"a pattern must have 1 to {NAME_CHARACTERS_MAX} characters")
        return value

    def caller(self, name: str, proof: Proof) -> Caller:
        """Return a caller with these rights."""
        return Caller(
            name,
            proof,
            frozenset(self.scopes),
            None if self.services is None else frozenset(self.services),
            self.models,
            CallerLimits(**self.limits.model_dump()),
        )


def check_caller_name(name: str) -> str:
    """Return the name of a caller.

    Raises:
        ValueError: It is too long, or has a character that is not allowed.
    """
    if not _CALLER_NAME.fullmatch(name):
        raise ValueError(
            f"must have 1 to {CALLER_NAME_CHARACTERS_MAX} characters of ASCII, without blanks and"
            " commas"
        )
    return name


def explain(error: ValidationError, kind: type[BaseModel], *, inside: str = "") -> str:
    """Return the first problem with a place in a file; never a value, which may be secret.

    Args:
        error: The problems.
        kind: The type of the table.
        inside: Where the table is.
    """
    problem: Any = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(filter(None, (inside, *map(str, problem["loc"]))))
    match problem["type"]:
        case "extra_forbidden":
            known = Limits.model_fields if len(problem["loc"]) > 1 else kind.model_fields
            return f"{place}: there is no such key{did_you_mean(problem['loc'][-1], known)}"
        case "missing":
            return f"{place}: is missing"
        case "value_error":
            return f"{place}: {problem['ctx']['error']}"
        case _:
            return f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
