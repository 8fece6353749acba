"""Checks tokens (JWT), and reads their callers.

Source: RFC 7519 and RFC 8725, "JSON Web Token Best Current Practices".
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jwt
from pydantic import ValidationError

from embedgrpc.engine.errors import BackendUnavailableError, UnauthenticatedError
from embedgrpc.server.caller import Caller, Proof, Scope
from embedgrpc.server.identity.rights import Rights, check_caller_name, explain
from embedgrpc.server.identity.signing_keys import KeySet
from embedgrpc.server.settings.settings import Settings

# More would not fit into the metadata of a call together with much else.
TOKEN_BYTES_MAX = 8192
_KEY_ID_CHARACTERS_MAX = 128
# Between the clocks of issuer and server.
_LEEWAY_S = 30.0
_CACHED_TOKENS_MAX = 8192
_CACHED_S_MAX = 300.0
_SCOPES: Mapping[str, Scope] = {one.value: one for one in Scope}
_SEGMENTS = 3


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token whose signature and claims were checked.

    Attributes:
        caller: Whose it is.
        expires_at: Until when it is valid, in seconds since 1970.
        key_id: The id of the key that it was signed with; empty for none.
        algorithm: The algorithm of its signature.
    """

    caller: Caller
    expires_at: float
    key_id: str
    algorithm: str


class UnknownKeyError(UnauthenticatedError):
    """The token was signed with a key that is not among those of now."""


class TokenVerifier:
    """Checks tokens.

    Args:
        settings: What is required of them.
        keys: Returns the keys of now; None while there are none.
        clock: Returns seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Callable[[], KeySet | None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._algorithms: frozenset[str] = frozenset(settings.jwt_algorithms)
        self._keys = keys
        self._clock = clock
        # By the hash of the token: until when it need not be checked again.
        self._cache: OrderedDict[bytes, tuple[float, VerifiedToken]] = OrderedDict()
        self._cached_keys: KeySet | None = None

    def verify(self, token: str) -> VerifiedToken:
        """Check a token.

        Raises:
            UnauthenticatedError: It is not valid. The message holds nothing of the token.
            UnknownKeyError: It may be valid once the keys are fetched again.
            BackendUnavailableError: There are no keys.
        """
        size = len(token)
        if size > TOKEN_BYTES_MAX:
            raise _invalid(f"the token has {size} bytes; the limit is {TOKEN_BYTES_MAX}")
        keys = self._keys()
        if keys is None:
            raise BackendUnavailableError(
                "the keys that tokens are signed with could not be fetched yet", retry_delay_s=1.0
            )
        if keys is not self._cached_keys:
            # A key that was taken back takes back its tokens.
            self._cache.clear()
            self._cached_keys = keys
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = self._clock()
        known = self._cache.get(digest)
        if known is not None and now < known[0]:
            return known[1]
        self._cache.pop(digest, None)
        verified = self._verify(token, keys)
        if now >= verified.expires_at:
            raise _expired()
        if len(self._cache) >= _CACHED_TOKENS_MAX:
            self._cache.popitem(last=False)
        self._cache[digest] = min(verified.expires_at, now + _CACHED_S_MAX), verified
        return verified

    def is_valid(self, token: VerifiedToken) -> bool:
        """Return whether a token that was checked is still valid."""
        keys = self._keys()
        return self._clock() < token.expires_at and (
            # Without keys nothing is known; a token is not taken back for that.
            keys is None or bool(keys.find(token.key_id, token.algorithm))
        )

    def _verify(self, token: str, keys: KeySet) -> VerifiedToken:
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # noqa: BLE001 - whatever a parser raises on foreign bytes
            raise _invalid("the token is malformed") from None
        algorithm, key_id = str(header.get("alg")), header.get("kid", "")
        # Never what the token alone says: with HS256 anybody could sign with a public key.
        if algorithm not in self._algorithms:
            raise _invalid(
                "the token is signed with another algorithm than jwt_algorithms allows, or not"
            )
        if not isinstance(key_id, str) or len(key_id) > _KEY_ID_CHARACTERS_MAX:
            raise _invalid(
                f"the id of the token's key has more than {_KEY_ID_CHARACTERS_MAX} characters"
            )
        found = keys.find(key_id, algorithm)
        if not found:
            raise UnknownKeyError(
                "the token is signed with an unknown key", metadata={"label": "INVALID_CREDENTIALS"}
            )
        if len(found) > 1 and not key_id:
            raise _invalid("the token does not say which key signed it, and there are several")
        # Two keys of one id stand side by side only for a moment, if ever.
        claims = self._claims(token, found[0].key, algorithm)
        try:
            expires_at = float(claims["exp"]) + _LEEWAY_S
        except OverflowError:
            raise _invalid("the token is malformed") from None
        return VerifiedToken(self._caller_of(claims), expires_at, key_id, algorithm)

    def _claims(self, token: str, key: Any, algorithm: str) -> Mapping[str, Any]:
        settings = self._settings
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", settings.jwt_name_claim]},
            )
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.InvalidAudienceError:
            raise _invalid("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise _invalid("the token is of another issuer") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("the token is not valid yet") from None
        except jwt.MissingRequiredClaimError as error:
            raise _invalid(f"the token has no claim {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise _invalid("the signature of the token is wrong") from None
        except Exception:  # noqa: BLE001 - whatever a parser raises on foreign bytes
            raise _invalid("the token is malformed") from None
        return claims

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        settings = self._settings
        name = claims[settings.jwt_name_claim]
        try:
            check_caller_name(name if isinstance(name, str) else "")
        except ValueError as error:
            raise _invalid(f"claim {settings.jwt_name_claim} of the token: {error}") from None
        given = claims.get(settings.jwt_rights_claim, {})
        try:
            rights = Rights.model_validate(given)
        except ValidationError as error:
            problem = explain(error, Rights, inside=settings.jwt_rights_claim)
            raise _invalid(f"the token: {problem}") from None
        caller = rights.caller(name, Proof.TOKEN)
        return replace(caller, scopes=caller.scopes | _scopes_of(claims))


def looks_like_token(text: str) -> bool:
    """Return whether a text has the parts of a token."""
    return text.count(".") == _SEGMENTS - 1


def _scopes_of(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Return the scopes that a token grants: those of other services mean nothing here."""
    given = claims.get("scope", claims.get("scp", ()))
    words = given.split() if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        return frozenset()
    return frozenset(_SCOPES[one] for one in words if isinstance(one, str) and one in _SCOPES)


def _invalid(message: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, metadata={"label": "INVALID_CREDENTIALS"})


def _expired() -> UnauthenticatedError:
    return UnauthenticatedError("the token has expired", metadata={"label": "EXPIRED_CREDENTIALS"})
