"""Who may read a registry by HTTP: a file of users, followed while it is served.

    NAME:$scrypt$LOG2_N$R$P$SALT$HASH      a line, in base64; `hotshoe registry password NAME` makes one
    NAME:$2y$COST$…                        `htpasswd -B` makes one, and docker-registry takes it, too

A file that is gone or wrong admits nobody until it is right again.
"""

import base64
import binascii
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

from hotshoe.registry.file_stamp import file_stamp
from hotshoe.registry.http.passwords import InvalidPassword, Password, ScryptPassword, parse_password

_MAX_FILE_BYTES = 1 << 20
_MAX_HEADER = 4096
_MAX_ADMITTED = 1024
_NAME = re.compile(r"[^\s:#][^\s:]{0,127}")


class InvalidUsers(Exception):
    """A file of users that is not one; the message names the line."""


def user_line(name: str, password: str) -> str:
    """A line of the file. Raises ValueError: there is no such name or password."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"user {name!r}: expected a name without spaces and colons")
    if not password:
        raise ValueError(f"user {name!r}: expected a password that is not empty")
    return f"{name}:{ScryptPassword.of(password).line}"


class HttpUsers:
    """The users of a file. Any thread.

    Raises:
        InvalidUsers, OSError: the file is none, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_stamp = file_stamp(path)
        self._users = _read(path)
        self._nobody: Password = ScryptPassword.of(secrets.token_hex())
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
        users = self._current()
        user = users.get(name)
        secret = user or self._somebody(name, users)
        ticket = hmac.digest(self._key, f"{name}:{secret.line}\0{password}".encode(), "sha256")
        if ticket in self._admitted:
            return True
        with self._hashing:
            is_right = secret.is_password(password) and user is not None
        if is_right:
            with self._mutex:
                while len(self._admitted) >= _MAX_ADMITTED:
                    del self._admitted[next(iter(self._admitted))]
                self._admitted[ticket] = None
        return is_right

    def _somebody(self, name: str, users: Mapping[str, Password]) -> Password:
        """Whom an unknown name is held against, always the same one: so it takes as long as one of the users'."""
        secrets = list(users.values()) or [self._nobody]
        drawn = hmac.digest(self._key, name.encode(), "sha256")
        return secrets[int.from_bytes(drawn) % len(secrets)]

    def _current(self) -> Mapping[str, Password]:
        with self._mutex:
            stamp = file_stamp(self._path)
            if stamp != self._read_stamp:
                self._read_stamp = stamp
                try:
                    self._users = _read(self._path)
                except (InvalidUsers, OSError):
                    self._users = {}
            return self._users


def _basic(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_HEADER:
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if colon else None


def _read(path: Path) -> dict[str, Password]:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidUsers(f"{path}: expected at most {_MAX_FILE_BYTES} bytes")
    users: dict[str, Password] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        try:
            password = parse_password(hashed)
        except InvalidPassword as error:
            raise InvalidUsers(f"{path}: line {number}: {error}") from None
        if not _NAME.fullmatch(name):
            raise InvalidUsers(f"{path}: line {number}: expected a name without spaces before the colon")
        if name in users:
            raise InvalidUsers(f"{path}: line {number}: {ascii(name)} is there twice")
        users[name] = password
    return users
