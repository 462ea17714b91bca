"""Where a remote is, as people write it: oci://host/prefix, s3://bucket/prefix, dir:///path."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import parse_qsl, urlsplit

from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.reference import check_name

# How bytes travel, by scheme; None: in the clear to this machine only.
_SECURE: Mapping[str, bool | None] = MappingProxyType(
    {"oci": None, "oci+http": False, "oci+https": True, "s3": None, "s3+http": False, "dir": True}
)
_HOST = re.compile(r"[a-z0-9]+(?:[.-]+[a-z0-9]+)*|\[[0-9a-f:.]+\]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
S3_OPTIONS = ("endpoint", "region")


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A parsed URL. `str(url)` is what was written, which never holds a secret."""

    text: str
    kind: str  # "oci", "s3" or "dir"
    host: str  # host or host:port; the bucket; "" of a directory
    prefix: str  # what stands before every adapter's name, without slashes around it; the directory
    secure: bool
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> "RemoteUrl":
        """Reads a URL.

        Raises:
            InvalidReference: it is none; the message says which part is wrong.
        """
        scheme, separator, _ = text.partition("://")
        if not separator or scheme not in _SECURE:
            expected = "oci://HOST/PREFIX, s3://BUCKET/PREFIX or dir:///PATH"
            raise _invalid(f"{_shown(text)}: expected {expected}")
        if not text.isprintable():
            raise _invalid(f"{_shown(text)}: expected printable text")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise _invalid(f"{_shown(text)}: {error}") from None
        if "@" in parts.netloc:
            # It would stand in logs and in lists of processes.
            raise _invalid(f"{scheme}://…: expected no user or password; keep them in docker's config")
        if parts.fragment or (parts.query and not scheme.startswith("s3")):
            raise _invalid(f"{_shown(text)}: expected nothing after the path")
        kind = scheme.partition("+")[0]
        if kind == "dir":
            return cls(text, kind, "", _directory(text, parts.netloc, parts.path), True, {})
        host = _host(text, parts.hostname or "", port, pattern=_HOST if kind == "oci" else _BUCKET)
        options = _options(text, parts.query)
        where = host if kind == "oci" else urlsplit(options.get("endpoint", "")).netloc
        secure = _SECURE[scheme]
        if secure is None:
            secure = not is_loopback(where) if kind == "oci" else not options.get("endpoint", "").startswith("http:")
            if kind == "s3" and not secure and not is_loopback(where):
                raise _invalid(f"{_shown(text)}: expected an https endpoint, or the scheme s3+http")
        prefix = parts.path.strip("/")
        if prefix:
            check_name(prefix)
        return cls(text, kind, host, prefix, secure, MappingProxyType(options))

    def __str__(self) -> str:
        return self.text

    def repository(self, name: str) -> str:
        """What an adapter is called there."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def contains(self, other: "RemoteUrl") -> bool:
        """Whether `other` is this remote, or a part of it."""
        same = (self.kind, self.host, self.secure, self.options) == (
            other.kind,
            other.host,
            other.secure,
            other.options,
        )
        ours, theirs = PurePosixPath(self.prefix).parts, PurePosixPath(other.prefix).parts
        return same and theirs[: len(ours)] == ours


def is_loopback(netloc: str) -> bool:
    """Whether "host" or "host:port" is this machine."""
    host = urlsplit(f"//{netloc}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(text: str, host: str, port: int | None, *, pattern: re.Pattern[str]) -> str:
    shown = f"[{host}]" if ":" in host else host
    if not pattern.fullmatch(shown) or (port is not None and pattern is _BUCKET):
        what = "a bucket" if pattern is _BUCKET else "a host"
        raise _invalid(f"{_shown(text)}: expected {what} in lower case after ://")
    return shown if port is None else f"{shown}:{port}"


def _directory(text: str, netloc: str, path: str) -> str:
    if netloc or not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise _invalid(f"{_shown(text)}: expected dir:///PATH, an absolute path without '..'")
    return path


def _options(text: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - set(S3_OPTIONS):
        raise _invalid(f"{_shown(text)}: {_shown(min(unknown))} is none of {', '.join(S3_OPTIONS)}")
    endpoint = options.get("endpoint")
    if endpoint is not None and not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", endpoint):
        raise _invalid(f"{_shown(text)}: expected endpoint=https://HOST or http://HOST:PORT")
    return options


def _shown(text: str) -> str:
    return ascii(text[:200])


def _invalid(problem: str) -> InvalidReference:
    return InvalidReference(f"remote {problem}", field="remote")
