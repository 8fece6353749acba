"""An issuer of tokens for tests."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NAME, AUDIENCE = "https://issuer.example", "embedgrpc"


class Issuer:
    """Signs tokens, and publishes its keys."""

    def __init__(self, algorithm: str = "ES256") -> None:
        self.keys: dict[str, tuple[str, Any]] = {}
        self.add("first", algorithm)

    def add(self, key_id: str, algorithm: str) -> None:
        """Make another key."""
        key: Any
        if algorithm.startswith(("RS", "PS")):
            key = rsa.generate_private_key(65537, 2048)
        elif algorithm.startswith("ES"):
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = ed25519.Ed25519PrivateKey.generate()
        self.keys[key_id] = algorithm, key

    def jwks(self) -> bytes:
        """Its public keys."""
        keys = []
        for key_id, (name, key) in self.keys.items():
            algorithm: Any = jwt.get_algorithm_by_name(name)
            public = algorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append({**public, "kid": key_id, "use": "sig"})
        return json.dumps({"keys": keys}).encode()

    def token(
        self, key_id: str = "first", *, headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Sign a token. A claim that is None is left out.

        Args:
            key_id: The key to sign with.
            headers: Headers beside the usual ones.
            claims: Claims beside the usual ones.
        """
        algorithm, key = self.keys[key_id]
        payload = {
            "iss": NAME,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": int(time.time()) + 3600,
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key, algorithm, {"kid": key_id, **(headers or {})})
