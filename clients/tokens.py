"""The token that calls carry, for a server that asks who calls: given, or from the environment.

HOTSHOE_TOKEN is one; HOTSHOE_TOKEN_FILE names a file that has one, and is read again whenever it changes, as tokens do
that an orchestrator renews.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from hotshoe.registry.file_stamp import file_stamp

Token = str | Callable[[], str]

_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]+")
_LOOPBACK = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[::1\]):\d+|unix:.+|unix-abstract:.+")


def token_source(token: Token | None, environment: Mapping[str, str] = os.environ) -> Callable[[], str] | None:
    """What gives the token of each call, or None if there is none."""
    if callable(token):
        return lambda: _checked(token(), "token")
    if token is not None:
        fixed = _checked(token, "token")
        return lambda: fixed
    if found := environment.get("HOTSHOE_TOKEN"):
        return token_source(_checked(found, "HOTSHOE_TOKEN"))
    if path := environment.get("HOTSHOE_TOKEN_FILE"):
        return _TokenFile(Path(path)).read
    return None


def refuse_clear_text(target: str) -> None:
    """Raises ValueError for an address where others could read a token on its way."""
    if not _LOOPBACK.fullmatch(target):
        raise ValueError(f"token: would go to {target} in the clear; say tls://{target}")


class _TokenFile:
    """A file with a token in it, read again when it is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._token = ""

    def read(self) -> str:
        """Raises OSError, or ValueError: what it has is no token."""
        stamp = file_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = None  # what it was before counts no more, whatever comes of reading it
            self._token = _checked(self._path.read_text("utf-8").strip(), str(self._path))
            self._stamp = stamp
        return self._token


def _checked(token: str, name: str) -> str:
    if not _BEARER.fullmatch(token):
        raise ValueError(f"{name}: expected a token: letters, digits and . _ ~ + / = - alone")
    return token
