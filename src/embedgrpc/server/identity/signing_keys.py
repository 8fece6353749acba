"""The public keys that tokens are signed with: a JWKS, from a file or from its issuer.

PyJWKClient would fetch in the middle of a call, once for each unknown key id, and blocks meanwhile.

Source: RFC 7517 and RFC 7518.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

_JWKS_BYTES_MAX = 64 * 1024
_FETCH_S_MAX = 10.0
_RETRY_S = (1.0, 60.0)
# Keys that could not be fetched again are trusted for this long.
_STALE_S_MAX = 24 * 3600.0
# A token with an unknown key has the keys fetched, but no more often than this.
_FORCED_INTERVAL_S = 30.0
# So many calls may wait for such a fetch.
_WAITING_MAX = 64
_RSA_BITS_MIN = 2048
_SECRET_BYTES_MIN = 32
# For each algorithm the type of its keys, and their curve.
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    **{f"{family}{bits}": ("RSA", "") for family in ("RS", "PS") for bits in (256, 384, 512)},
    **{f"HS{bits}": ("oct", "") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
# What PyJWT takes for a key, by its type and curve.
_READERS: Final[Mapping[tuple[str, str], str]] = {
    kind: name for name, kind in reversed(tuple(_KINDS.items()))
}
# The rest of a JWK may be its private part.
_PUBLIC_PARTS: Final = frozenset({"kty", "crv", "n", "e", "x", "y", "k"})


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key.

    Attributes:
        id: Its `kid`; empty for none.
        algorithm: The only algorithm it is for; empty for all that its type fits.
        kind: Its type, and its curve.
        key: The key itself.
    """

    id: str
    algorithm: str
    kind: tuple[str, str]
    key: Any

    def fits(self, algorithm: str) -> bool:
        """Return whether an algorithm may be used with it."""
        return self.kind == _KINDS.get(algorithm) and self.algorithm in ("", algorithm)


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """The keys of a JWKS.

    Attributes:
        content: The JWKS: keys are equal if it is.
        keys: Those that can be used.
    """

    content: bytes
    keys: Sequence[SigningKey]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and other.content == self.content

    __hash__ = None  # type: ignore[assignment] # it is compared, not looked up

    def find(self, key_id: str, algorithm: str) -> Sequence[SigningKey]:
        """Return the keys that may have signed a token.

        Args:
            key_id: What the token says; empty for nothing.
            algorithm: What the token says.
        """
        return [
            one for one in self.keys if one.fits(algorithm) and (not key_id or one.id == key_id)
        ]


def parse_jwks(content: bytes) -> KeySet:
    """Read a JWKS. Keys that are not for signatures, or of unknown or weak kinds, are left out.

    Raises:
        ValueError: It is malformed, or no key is left. The message holds no key.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is no JWKS: it has no list of keys")  # noqa: TRY004 - a bad file
    keys = [key for entry in entries if (key := _read_key(entry)) is not None]
    if not keys:
        raise ValueError(f"none of its {len(entries)} keys can check signatures of tokens")
    return KeySet(content, keys)


def _read_key(entry: Any) -> SigningKey | None:
    """Return a key that can check signatures; None for another entry of a JWKS."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    words = [entry.get(part, "") for part in ("kty", "crv", "alg", "kid")]
    if not all(isinstance(one, str) for one in words):
        return None
    kind, algorithm, key_id = (words[0], words[1]), words[2], words[3]
    key = _read_public(entry, kind)
    return None if key is None or _is_weak(key) else SigningKey(key_id, algorithm, kind, key)


def _read_public(entry: Mapping[str, Any], kind: tuple[str, str]) -> Any:
    reader = _READERS.get(kind)
    if reader is None:
        return None
    public = {part: entry[part] for part in _PUBLIC_PARTS & entry.keys()}
    try:
        return jwt.PyJWK(public, reader).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None


def _is_weak(key: Any) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size < _RSA_BITS_MIN
    return isinstance(key, bytes) and len(key) < _SECRET_BYTES_MIN


class KeySource:
    """The keys of now, fetched in the background. What was fetched stays in use for a day.

    Args:
        fetch: Returns the JWKS; may raise any exception.
        interval_s: The time between two fetches.
        clock: Returns seconds.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[KeySet]],
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._interval_s = interval_s
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = self._forced_at = float("-inf")
        self._running: asyncio.Task[bool] | None = None
        self._waiting = 0
        self._problem = ""
        self._outcomes = {"loaded": 0, "refused": 0}

    @property
    def keys(self) -> KeySet | None:
        """The keys; None if there were none yet, or none for a day."""
        is_stale = self._clock() - self._fetched_at > _STALE_S_MAX
        return None if is_stale else self._keys

    async def run(self) -> None:
        """Fetch again and again, until cancelled."""
        retry_s = _RETRY_S[0]
        while True:
            if await self.refresh():
                retry_s = _RETRY_S[0]
                await asyncio.sleep(self._interval_s)
            else:
                await asyncio.sleep(min(retry_s, self._interval_s))
                retry_s = min(2 * retry_s, _RETRY_S[1])

    async def refresh(self) -> bool:
        """Fetch the keys; return whether that succeeded. Joins a fetch that runs."""
        if self._running is None:
            self._running = asyncio.create_task(self._refresh())
            self._running.add_done_callback(self._ended)
        return await asyncio.shield(self._running)

    async def refresh_for_unknown(self) -> None:
        """Fetch the keys because a token has an unknown one, unless that was just done."""
        now = self._clock()
        is_due = now - max(self._forced_at, self._fetched_at) >= _FORCED_INTERVAL_S
        if self._running is None and not is_due:
            return
        if self._waiting >= _WAITING_MAX:
            return
        if self._running is None:
            self._forced_at = now
        self._waiting += 1
        try:
            await self.refresh()
        finally:
            self._waiting -= 1

    def read(self) -> Iterator[Reading]:
        """Return how often keys were fetched. From any thread."""
        for outcome, count in self._outcomes.items():
            attributes = {"setting": "jwks_url", "outcome": outcome}
            yield Reading("embedgrpc.credentials.reloads", count, attributes)

    def _ended(self, _: "asyncio.Task[bool]") -> None:
        self._running = None

    async def _refresh(self) -> bool:
        try:
            keys = await self._fetch()
        except Exception as error:  # noqa: BLE001 - the keys of now must outlive any failure
            problem = str(error) or type(error).__name__
            if problem != self._problem:
                _logger.error(  # noqa: TRY400 - the problem says all
                    "keys for tokens not fetched; the former ones stay in use for a day",
                    extra={"problem": problem[:512]},
                )
            self._problem = problem
            self._outcomes["refused"] += 1
            return False
        self._fetched_at = self._clock()
        self._outcomes["loaded"] += 1
        if keys != self._keys or self._problem:
            _logger.info("keys for tokens fetched", extra={"keys": len(keys.keys)})
        self._problem = ""
        # The same object tells that nothing has changed.
        self._keys = self._keys if keys == self._keys else keys
        return True


def fetching(url: str, ca_file: str) -> Callable[[], Awaitable[KeySet]]:
    """Return what fetches a JWKS.

    Args:
        url: Its URL.
        ca_file: The authorities that its server is trusted by, in PEM; empty for the system's.
    """

    async def fetch() -> KeySet:
        # Each time: both may have been renewed.
        context = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file or None)
        timeout = aiohttp.ClientTimeout(total=_FETCH_S_MAX)
        # Compressed, a small answer could become a large one.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        options: Any = {"timeout": timeout, "trust_env": True, "auto_decompress": False}
        async with (
            aiohttp.ClientSession(**options) as session,
            session.get(url, ssl=context, headers=headers, allow_redirects=False) as response,
        ):
            if response.status != 200:  # noqa: PLR2004 - OK
                raise ValueError(f"jwks_url answers with status {response.status}")
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > _JWKS_BYTES_MAX:
                    raise ValueError(f"jwks_url sends more than {_JWKS_BYTES_MAX} bytes")
        try:
            return await asyncio.to_thread(parse_jwks, content)
        except ValueError as error:
            raise ValueError(f"jwks_url: {error}") from None

    return fetch
