"""Who we are to an OCI registry: passwords and tokens, and docker's config.json, which has them.

A registry that answers 401 says in WWW-Authenticate what it wants: the password itself (Basic), or a token that a
server of its choice gives for the password (Bearer). https://distribution.github.io/distribution/spec/auth/token/
"""

import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hotshoe.registry.manifest import MALFORMED

_HELPER_SECONDS = 10.0
_MAX_CONFIG_BYTES = 1 << 20
_TOKEN_SECONDS = 60.0  # that a token lives at least, by the specification, and where it does not say
_TOKEN_MARGIN = 0.8  # of its life, after which a token is fetched anew
_CHALLENGE = re.compile(r'(basic|bearer)\s+((?:[a-z_]+=(?:"[^"]*"|[^\s,"]*)\s*,?\s*)*)', re.IGNORECASE)
_PARAMETER = re.compile(r'([a-z_]+)=(?:"([^"]*)"|([^\s,"]*))', re.IGNORECASE)
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY_TOKEN_USER = "<token>"  # how a credential helper says that its secret is a token


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; or an identity token, which gets tokens from the token server."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Challenge(NamedTuple):
    """One thing that WWW-Authenticate asks for; `scheme` is "basic" or "bearer"."""

    scheme: str
    parameters: Mapping[str, str]


class TokenRequest(NamedTuple):
    """What to ask a token server: a GET with `query`, or, if there is a `form`, a POST of it."""

    realm: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    authorization: str


class Authenticator:
    """What to write into Authorization, for each part of a registry.

    Args:
        credentials: called whenever the registry asks, so that new ones are seen; None if there are none.
        fetch: asks a token server, and returns its document.
    """

    def __init__(
        self, credentials: Callable[[], Credentials | None], fetch: Callable[[TokenRequest], Mapping[str, Any]]
    ) -> None:
        self._credentials = credentials
        self._fetch = fetch
        self._known: dict[str, tuple[str, float]] = {}  # scope → header, when it expires
        self._mutex = threading.Lock()

    def header(self, scope: str) -> str | None:
        """What was right for that scope before, if it still is."""
        with self._mutex:
            header, expires = self._known.get(scope, (None, 0.0))
        return header if time.monotonic() < expires else None

    def answer(self, headers: Sequence[str], scope: str) -> bool:
        """Learns the header for a scope from what a 401 said. False if there is nothing to answer with."""
        challenges = {challenge.scheme: challenge.parameters for challenge in parse_challenges(headers)}
        credentials = self._credentials()
        if "bearer" in challenges:
            found = self._token(challenges["bearer"], scope, credentials)
        elif "basic" in challenges and credentials is not None and credentials.username:
            found = (credentials.basic, float("inf"))
        else:
            return False
        with self._mutex:
            self._known[scope] = found
        return True

    def _token(self, parameters: Mapping[str, str], scope: str, credentials: Credentials | None) -> tuple[str, float]:
        # The scope is ours: a registry that names another would get a token for what it has no business with.
        asked = {"scope": scope, **{key: parameters[key] for key in ("service",) if key in parameters}}
        form: Mapping[str, str] = {}
        authorization = ""
        if credentials is not None and credentials.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
            form = {**asked, **grant, "client_id": "hotshoe"}
        elif credentials is not None:
            authorization = credentials.basic
        document = self._fetch(TokenRequest(parameters.get("realm", ""), asked, form, authorization))
        token = document.get("token") or document.get("access_token")
        if not (isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("the token server gave no token")
        try:
            life = max(_TOKEN_SECONDS, float(document.get("expires_in", _TOKEN_SECONDS)))
        except (TypeError, ValueError):
            life = _TOKEN_SECONDS
        return f"Bearer {token}", time.monotonic() + _TOKEN_MARGIN * life


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """What WWW-Authenticate headers ask for, of what we can give."""
    found = []
    for header in headers:
        for scheme, rest in _CHALLENGE.findall(header[:4096]):
            parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
            found.append(Challenge(scheme.lower(), parameters))
    return found


class DockerConfig:
    """docker's config.json, read anew each time: `docker login` writes it, as do podman and skopeo.

    Args:
        path: of the file; None, or one that is missing, has no credentials.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def credentials(self, host: str) -> Credentials | None:
        """Those of a registry, "host" or "host:port". Raises ValueError: the file, or its helper, is unusable."""
        config = self._read()
        try:
            helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
            if helper:
                return _ask_helper(str(helper), host)
            for key, entry in config.get("auths", {}).items():
                if re.sub(r"^https?://", "", key).partition("/")[0] == host:
                    return _of_entry(entry)
        except MALFORMED as error:
            raise ValueError(f"docker's config has no sound entry of {host}: {error}") from error
        return None

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                document = json.loads(file.read(_MAX_CONFIG_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ValueError(f"docker's config cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise ValueError("docker's config is no JSON object")
        return document


def _of_entry(entry: Mapping[str, Any]) -> Credentials | None:
    if entry.get("identitytoken"):
        return Credentials(identity_token=str(entry["identitytoken"]))
    if entry.get("auth"):
        username, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        if not colon:
            raise ValueError("its auth is not USER:PASSWORD in base64")
        return Credentials(username, password.rstrip("\0"))
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password", "")))
    return None


def _ask_helper(helper: str, host: str) -> Credentials | None:
    if not _HELPER.fullmatch(helper):
        raise ValueError("the helper's name is not a word")
    try:
        result = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=host.encode(), capture_output=True, timeout=_HELPER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"docker-credential-{helper}: {error}") from error
    if result.returncode != 0:  # it has none
        return None
    document = json.loads(result.stdout)
    if document["Username"] == _IDENTITY_TOKEN_USER:
        return Credentials(identity_token=str(document["Secret"]))
    return Credentials(str(document["Username"]), str(document["Secret"]))
