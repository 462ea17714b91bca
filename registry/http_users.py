"""Who may read a registry by HTTP: a file of users, followed while it is served.

    NAME:$scrypt$LOG2_N$R$P$SALT$HASH      a line, in base64; `hotshoe registry password NAME` makes one

A file that is gone or wrong admits nobody until it is right again.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LOG2_N, _R, _P = 14, 8, 1  # 16 MiB and some 40 ms
_MAX_MEMORY = 256 << 20
_MAX_FILE_BYTES = 1 << 20
_MAX_HEADER = 4096
_MAX_ADMITTED = 1024
_NAME = re.compile(r"[^\s:#][^\s:]{0,127}")
_LINE = re.compile(
    r"([^\s:]+):\$scrypt\$(\d{1,2})\$(\d{1,2})\$(\d{1,2})\$([A-Za-z0-9+/=]{1,128})\$([A-Za-z0-9+/=]{1,128})"
)


class InvalidUsers(Exception):
    """A file of users that is not one; the message names the line."""


@dataclass(frozen=True, slots=True)
class _Secret:
    """A password's hash, and how it was made."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    def of(self, password: str) -> bytes:
        return hashlib.scrypt(
            password.encode(), salt=self.salt, n=1 << self.log2_n, r=self.r, p=self.p, maxmem=_MAX_MEMORY, dklen=32
        )

    def line(self, name: str) -> str:
        salt, digest = (base64.b64encode(data).decode() for data in (self.salt, self.digest))
        return f"{name}:$scrypt${self.log2_n}${self.r}${self.p}${salt}${digest}"


def user_line(name: str, password: str) -> str:
    """A line of the file. Raises ValueError: there is no such name or password."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"user {name!r}: expected a name without spaces and colons")
    if not password:
        raise ValueError(f"user {name!r}: expected a password that is not empty")
    return _secret(secrets.token_bytes(16), password).line(name)


class HttpUsers:
    """The users of a file. Any thread.

    Raises:
        InvalidUsers, OSError: the file is none, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_stamp = _stamp(path)
        self._users = _read(path)
        self._nobody = _secret(b"nobody", secrets.token_hex())  # whom all unknown are held against
        self._key = secrets.token_bytes(32)
        self._admitted: dict[bytes, None] = {}  # what was verified, unreadable: each part of a pull asks again
        self._mutex = threading.Lock()
        self._hashing = threading.Lock()  # who guesses passwords gets one core at most

    def admits(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is a user's name and password."""
        found = _basic(authorization)
        if found is None:
            return False
        name, password = found
        user = self._current().get(name)
        secret = user or self._nobody
        ticket = hmac.digest(self._key, f"{secret.line(name)}\0{password}".encode(), "sha256")
        if ticket in self._admitted:
            return True
        with self._hashing:
            is_right = hmac.compare_digest(secret.of(password), secret.digest) and user is not None
        if is_right:
            with self._mutex:
                while len(self._admitted) >= _MAX_ADMITTED:
                    del self._admitted[next(iter(self._admitted))]
                self._admitted[ticket] = None
        return is_right

    def _current(self) -> Mapping[str, _Secret]:
        with self._mutex:
            stamp = _stamp(self._path)
            if stamp != self._read_stamp:
                self._read_stamp = stamp
                try:
                    self._users = _read(self._path)
                except (InvalidUsers, OSError):
                    self._users = {}
            return self._users


def _secret(salt: bytes, password: str) -> _Secret:
    bare = _Secret(_LOG2_N, _R, _P, salt, b"")
    return _Secret(_LOG2_N, _R, _P, salt, bare.of(password))


def _basic(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_HEADER:
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if colon else None


def _read(path: Path) -> dict[str, _Secret]:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidUsers(f"{path}: expected at most {_MAX_FILE_BYTES} bytes")
    users: dict[str, _Secret] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        secret = found and _parsed(*found.groups()[1:])
        if not found or secret is None or not _NAME.fullmatch(found[1]):
            raise InvalidUsers(
                f"{path}: line {number}: expected NAME:$scrypt$…, as `hotshoe registry password` makes it"
            )
        if found[1] in users:
            raise InvalidUsers(f"{path}: line {number}: {ascii(found[1])} is there twice")
        users[found[1]] = secret
    return users


def _parsed(log2_n: str, r: str, p: str, salt: str, digest: str) -> _Secret | None:
    try:
        secret = _Secret(
            int(log2_n), int(r), int(p), base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
        )
    except binascii.Error:
        return None
    is_bounded = 10 <= secret.log2_n <= 17 and 1 <= secret.r <= 8 and 1 <= secret.p <= 4
    return secret if is_bounded and len(secret.digest) == 32 and secret.salt else None


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
