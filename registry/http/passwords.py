"""Passwords as a file of users keeps them: hashed, by scrypt as we write them or by bcrypt as `htpasswd -B` does."""

import base64
import binascii
import hashlib
import hmac
import importlib.util
import re
import secrets
from dataclasses import dataclass
from typing import Protocol

_LOG2_N, _R, _P = 14, 8, 1  # 16 MiB and some 40 ms
_MAX_MEMORY = 256 << 20
_SCRYPT = re.compile(r"\$scrypt\$(\d{1,2})\$(\d{1,2})\$(\d{1,2})\$([A-Za-z0-9+/=]{1,128})\$([A-Za-z0-9+/=]{1,128})")
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_BCRYPT_COSTS = range(4, 15)  # the last takes a second
_BCRYPT_BYTES = 72  # of a password, after which htpasswd and docker-registry, too, look no further


class InvalidPassword(Exception):
    """What is no hash of a password, or of none that can be verified here; the message says what was expected."""


class Password(Protocol):
    """A password's hash, and how it was made."""

    @property
    def line(self) -> str:
        """As a file has it."""
        ...

    def is_password(self, password: str) -> bool:
        """Whether it is that one; takes its time, whichever it is, and lets other threads run meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class ScryptPassword:
    """Ours."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> "ScryptPassword":
        """The hash of a password, with a salt of its own."""
        salt = secrets.token_bytes(16)
        return cls(_LOG2_N, _R, _P, salt, cls(_LOG2_N, _R, _P, salt, b"")._hash(password))

    @property
    def line(self) -> str:
        salt, digest = (base64.b64encode(data).decode() for data in (self.salt, self.digest))
        return f"$scrypt${self.log2_n}${self.r}${self.p}${salt}${digest}"

    def is_password(self, password: str) -> bool:
        return hmac.compare_digest(self._hash(password), self.digest)

    def _hash(self, password: str) -> bytes:
        return hashlib.scrypt(
            password.encode(), salt=self.salt, n=1 << self.log2_n, r=self.r, p=self.p, maxmem=_MAX_MEMORY, dklen=32
        )


@dataclass(frozen=True, slots=True)
class BcryptPassword:
    """That of htpasswd files, as docker-registry and others take them."""

    line: str

    def is_password(self, password: str) -> bool:
        import bcrypt

        return bcrypt.checkpw(password.encode()[:_BCRYPT_BYTES], self.line.encode())


def parse_password(line: str) -> Password:
    """A hash as a file has it.

    Raises:
        InvalidPassword: it is none, or takes too long, or bcrypt is not installed.
    """
    if found := _SCRYPT.fullmatch(line):
        return _scrypt_password(*found.groups())
    if found := _BCRYPT.fullmatch(line):
        cost = int(found[1])
        if cost not in _BCRYPT_COSTS:
            expected = f"{_BCRYPT_COSTS[0]} to {_BCRYPT_COSTS[-1]}"
            raise InvalidPassword(f"expected bcrypt of cost {expected}, not {cost}: every login computes it")
        if importlib.util.find_spec("bcrypt") is None:
            raise InvalidPassword("bcrypt, as htpasswd -B writes it, needs a package: pip install 'hotshoe[htpasswd]'")
        return BcryptPassword(line)
    raise InvalidPassword(
        "expected NAME:$scrypt$…, as `hotshoe registry password` makes it, or NAME:$2y$…, as `htpasswd -B` does"
    )


def _scrypt_password(log2_n: str, r: str, p: str, salt: str, digest: str) -> Password:
    try:
        password = ScryptPassword(
            int(log2_n), int(r), int(p), base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
        )
    except binascii.Error as error:
        raise InvalidPassword("expected NAME:$scrypt$… with salt and hash in base64") from error
    is_bounded = 10 <= password.log2_n <= 17 and 1 <= password.r <= 8 and 1 <= password.p <= 4
    if not (is_bounded and len(password.digest) == 32 and password.salt):
        raise InvalidPassword("expected NAME:$scrypt$… with N of 2^10 to 2^17, r to 8, p to 4, and a hash of 32 bytes")
    return password
