"""Finds out who makes a call: by an API key, a token or a certificate."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedgrpc.engine.errors import UnauthenticatedError
from embedgrpc.server.caller import Caller, Proof
from embedgrpc.server.contract.names import list_names
from embedgrpc.server.identity.api_keys import ApiKeys, digest_of, parse_api_keys
from embedgrpc.server.identity.certificate_callers import (
    CertificateCaller,
    find_certificate_caller,
    parse_certificate_callers,
)
from embedgrpc.server.identity.credentials import Credentials, read_credentials
from embedgrpc.server.identity.watched_file import FileError, WatchedFile
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.metrics import Reading

if TYPE_CHECKING:
    from embedgrpc.server.identity.signing_keys import KeySource
    from embedgrpc.server.identity.tokens import TokenVerifier, VerifiedToken

_logger = logging.getLogger(__name__)

# The longest key or token that is looked at.
_CREDENTIALS_CHARACTERS_MAX = 16_384
_URI_KEY = "peer_uri"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call, and what proves it.

    Attributes:
        caller: Who.
        digest: The hash of the API key.
        token: The token.
        uri: The id in the certificate.
    """

    caller: Caller
    digest: bytes = b""
    token: "VerifiedToken | None" = None
    uri: str = ""


class Authenticator:
    """Knows all callers. For one event loop.

    Args:
        settings: They name what callers are known by.
        model_names: Returns the names of all models, to tell which callers may use none of them.
        clock: Returns seconds since 1970.

    Raises:
        FileError: A file cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model_names: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: WatchedFile[ApiKeys] | None = None
        self._certificates: WatchedFile[Sequence[CertificateCaller]] | None = None
        self._verifier: TokenVerifier | None = None
        self._source: KeySource | None = None
        self._files: list[WatchedFile[Any]] = []
        if settings.api_keys_file:
            self._keys = WatchedFile("api_keys_file", settings.api_keys_file, parse_api_keys)
            self._files.append(self._keys)
        if settings.certificate_callers_file:
            self._certificates = WatchedFile(
                "certificate_callers_file",
                settings.certificate_callers_file,
                parse_certificate_callers,
            )
            self._files.append(self._certificates)
        if settings.jwt_issuer:
            self._set_up_tokens(settings)
        self._model_names = model_names
        self._report_patterns()

    def _set_up_tokens(self, settings: Settings) -> None:
        # Imported only where they are used: they cost time and memory.
        from embedgrpc.server.identity import signing_keys, tokens  # noqa: PLC0415 - see above

        if settings.jwks_file:
            file = WatchedFile("jwks_file", settings.jwks_file, signing_keys.parse_jwks)
            self._files.append(file)
            self._verifier = tokens.TokenVerifier(settings, lambda: file.content, clock=self._clock)
        else:
            source = signing_keys.KeySource(
                signing_keys.fetching(settings.jwks_url, settings.jwks_ca_file),
                interval_s=settings.jwks_refresh_interval_s,
            )
            self._source = source
            self._verifier = tokens.TokenVerifier(settings, lambda: source.keys, clock=self._clock)

    async def identify(self, context: Any) -> Identity:
        """Return who makes a call.

        Args:
            context: The context of the call: gRPC's, or what stands for it.

        Raises:
            UnauthenticatedError: That is not known.
            BackendUnavailableError: Its token cannot be checked now.
        """
        given = read_credentials(context.invocation_metadata())
        if given is None:
            return self._identify_by_certificate(context)
        if len(given.text) > _CREDENTIALS_CHARACTERS_MAX:
            raise _unauthenticated(
                f"the credentials have {len(given.text)} characters; the limit is"
                f" {_CREDENTIALS_CHARACTERS_MAX}",
                label="INVALID_CREDENTIALS",
            )
        if (identity := self._find_key(given.text)) is not None:
            return identity
        return await self._identify_by_token(given)

    def is_valid(self, identity: Identity) -> bool:
        """Return whether what proved an identity still does, and its rights are the same."""
        caller = identity.caller
        match caller.proof:
            case Proof.API_KEY:
                known = self._keys.content.get(identity.digest) if self._keys else None
                if known is None or self._clock() >= known.expires_at:
                    return False
                now = known.caller
            case Proof.CERTIFICATE:
                rows = self._certificates.content if self._certificates else ()
                found = find_certificate_caller(rows, identity.uri)
                if found is None:
                    return False
                now = found
            case _:
                token = identity.token
                return token is None or self._verifier is None or self._verifier.is_valid(token)
        return (now.name, now.services, now.models, now.scopes) == (
            caller.name,
            caller.services,
            caller.models,
            caller.scopes,
        )

    async def watch(self) -> None:
        """Keep everything up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._source is not None:
                tasks.create_task(self._source.run())
            tasks.create_task(self._watch_files())

    def check(self) -> str:
        """Return what is wrong with the files now; empty if they can be used. Blocks."""
        try:
            for file in self._files:
                file.check()
        except FileError as error:
            return str(error)
        return ""

    def reload(self) -> None:
        """Read the files that have changed. Blocks."""
        changed = [file.reload() for file in self._files]
        if any(changed):
            self._report_patterns()

    def read(self) -> Iterator[Reading]:
        """Return how often files and keys were reloaded. From any thread."""
        for file in self._files:
            yield from file.read()
        if self._source is not None:
            yield from self._source.read()

    def _report_patterns(self) -> None:
        """Log the patterns of the files that no model fits: they may be mistakes."""
        callers = [one.caller for one in (self._keys.content.values() if self._keys else ())]
        callers += [
            one.caller for one in (self._certificates.content if self._certificates else ())
        ]
        patterns = {pattern for one in callers for pattern in one.models or ()}
        names = tuple(self._model_names())
        unused = sorted(
            one for one in patterns if not Caller("", models=(one,)).may_use_model(names)
        )
        if unused:
            _logger.warning(
                "callers are allowed models that are not served",
                extra={"models": list_names(unused)},
            )

    async def _watch_files(self) -> None:
        while self._files:
            await asyncio.sleep(self._settings.credentials_reload_interval_s)
            try:
                # A network's file system may take its time.
                await asyncio.to_thread(self.reload)
            except Exception:
                _logger.exception("looking at the files of callers failed")

    def _find_key(self, text: str) -> Identity | None:
        if self._keys is None:
            return None
        digest = digest_of(text)
        known = self._keys.content.get(digest)
        if known is None:
            return None
        if self._clock() >= known.expires_at:
            raise _unauthenticated("the API key has expired", label="EXPIRED_CREDENTIALS")
        return Identity(known.caller, digest=digest)

    async def _identify_by_token(self, given: Credentials) -> Identity:
        if self._verifier is None or not given.may_be_token:
            raise _unauthenticated("the API key is unknown", label="INVALID_CREDENTIALS")
        from embedgrpc.server.identity.tokens import (  # noqa: PLC0415 - only where it is used
            UnknownKeyError,
            looks_like_token,
        )

        if not looks_like_token(given.text):
            what = "a token" if self._keys is None else "a known API key or a token"
            raise _unauthenticated(f"the credentials are not {what}", label="INVALID_CREDENTIALS")
        try:
            token = self._verifier.verify(given.text)
        except UnknownKeyError:
            if self._source is None:
                raise
            await self._source.refresh_for_unknown()
            token = self._verifier.verify(given.text)
        return Identity(token.caller, token=token)

    def _identify_by_certificate(self, context: Any) -> Identity:
        if self._certificates is None:
            raise _unauthenticated(
                "the call carries no credentials: send authorization: Bearer KEY",
                label="NO_CREDENTIALS",
            )
        uris = context.auth_context().get(_URI_KEY) or ()
        ids = [one.decode("ascii", "replace") for one in uris]
        # A SPIFFE certificate has exactly one.
        if len(ids) != 1:
            raise _unauthenticated(
                f"the call carries no credentials, and its certificate has {len(ids)} URIs; it must"
                " have one, its SPIFFE id",
                label="NO_CREDENTIALS",
            )
        caller = find_certificate_caller(self._certificates.content, ids[0])
        if caller is None:
            raise _unauthenticated(
                "the SPIFFE id of the certificate is unknown", label="INVALID_CREDENTIALS"
            )
        return Identity(caller, uri=ids[0])


def _unauthenticated(message: str, *, label: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, metadata={"label": label})
