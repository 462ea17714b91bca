"""Tokens as a server with --auth-keys wants them, and others."""

import time
from typing import Any

import jwt

from hotshoe.registry.signing.keys import PrivateKey

KEY = PrivateKey.new()


def claims(**changes: Any) -> dict[str, Any]:
    """A token's claims; None takes one away."""
    now = int(time.time())
    found = {"iss": "hotshoe", "aud": "hotshoe", "sub": "ada", "iat": now, "exp": now + 600, "scope": "read"} | changes
    return {name: value for name, value in found.items() if value is not None}


def token(key: PrivateKey = KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token of those claims, signed as ours are."""
    return jwt.encode(claims(**changes), key.pem(), "ES256", {"kid": key.public.key_id} | (header or {}))
