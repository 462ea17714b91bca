"""One exchange with an OCI registry: who we are, where it redirects, what it refuses, and when to try again."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx

from hotshoe.registry.errors import AdapterNotFound, RemoteDamaged, RemoteRefused, RemoteUnavailable
from hotshoe.registry.manifest import MALFORMED
from hotshoe.registry.remotes.connections import HTTP_ERRORS, PatientTransport, within
from hotshoe.registry.remotes.oci_auth import Authenticator, Credentials, TokenRequest
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.remote_url import RemoteUrl, is_loopback

_MAX_HOPS = 4
_MAX_SMALL_BYTES = 64 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 500, 502, 503, 504)
_ERROR_CODE = re.compile(r"[A-Z_]{1,40}")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OciRequest:
    """What is asked.

    Attributes:
        what: in the words of an error's message.
        target: a path, or a URL that the registry gave.
        accept: the status codes that are an answer.
        content: gives the body from its start, each time that it is sent.
        size_bytes: of whichever body is large, for how long it may take.
    """

    method: str
    target: str
    what: str
    repository: str
    accept: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[], Iterator[bytes]] | None = None
    size_bytes: int = 0

    @property
    def scope(self) -> str:
        actions = "pull" if self.method in ("GET", "HEAD") else "pull,push"
        return f"repository:{self.repository}:{actions}"


class Answer(NamedTuple):
    """An answer whose body has been read."""

    body: bytes
    status: int
    headers: httpx.Headers
    url: httpx.URL


class ServerFailed(RemoteUnavailable):
    """The registry answered with a status that says that it is at fault, or busy."""

    def __init__(self, remote: str, problem: str, status: int) -> None:
        super().__init__(remote, problem)
        self.status = status


class OciHttp:
    """The connections to one registry. Any thread.

    Args:
        credentials: by "host" or "host:port"; asked when the registry wants some.
    """

    def __init__(self, url: RemoteUrl, *, credentials: Callable[[str], Credentials | None], patience: Patience) -> None:
        self._url = url
        self._patience = patience
        self._origin = httpx.URL(f"{'https' if url.secure else 'http'}://{url.host}")
        self._auth = Authenticator(lambda: credentials(url.host), self._fetch_token)
        self._client = httpx.Client(
            transport=PatientTransport(),
            timeout=httpx.Timeout(patience.silence_seconds, connect=patience.connect_seconds),
            headers={"Accept-Encoding": "identity", "User-Agent": "hotshoe"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def open(self, request: OciRequest) -> Iterator[httpx.Response]:
        """Sends a request; its answer's body is still to be read, by `iter_raw`.

        Raises:
            AdapterNotFound: 404.
            RemoteError: anything else that is not accepted, or a connection that fails, now or in the block.
        """
        with self._told(request.what), within(self._patience.seconds_for(request.size_bytes)):
            response = self._answer(request)
            try:
                self._check(response, request)
                yield response
            finally:
                response.close()

    def read(self, request: OciRequest, *, max_bytes: int) -> Answer:
        """The whole body of an answer, tried again while the registry fails.

        Raises:
            RemoteDamaged: it has more bytes.
            AdapterNotFound, RemoteError: as `open`.
        """
        return self.retried(lambda: self.read_once(request, max_bytes=max_bytes))

    def read_once(self, request: OciRequest, *, max_bytes: int = _MAX_SMALL_BYTES) -> Answer:
        """As `read`, but for what must not be sent twice."""
        with self.open(request) as response:
            body = self._bounded_body(response, request.what, max_bytes)
            return Answer(body, response.status_code, response.headers, response.url)

    def retried(self, action: Callable[[], _T]) -> _T:
        """What `action` returns, tried again while it raises RemoteUnavailable. It must be safe to repeat."""
        for attempt in range(self._patience.attempts - 1):
            try:
                return action()
            except RemoteUnavailable:
                self._patience.rest(attempt)
        return action()

    def next_url(self, answer: Answer, link: str, what: str) -> str:
        """Where an answer says that things go on. Raises RemoteRefused if that is another host."""
        with self._told(what):
            target = answer.url.join(link)
        if not link or not self._is_ours(target):
            raise RemoteRefused(str(self._url), f"{what}: it goes on at {_shown(link) or 'no place'}")
        return str(target)

    def _answer(self, request: OciRequest) -> httpx.Response:
        url = self._origin.join(request.target)
        challenged = False
        for _ in range(_MAX_HOPS):
            response = self._send(request, url)
            if response.status_code == 401 and not challenged and self._is_ours(url):
                self._finish(response)
                challenged = True
                if not self._auth.answer(response.headers.get_list("www-authenticate"), request.scope):
                    raise RemoteRefused(str(self._url), f"{request.what}: it wants a user and a password")
            elif response.status_code in _REDIRECTS and request.method in ("GET", "HEAD"):
                self._finish(response)
                url = self._redirected(url, response.headers.get("location", ""), request.what)
            else:
                return response
        raise RemoteRefused(str(self._url), f"{request.what}: it redirects again and again")

    def _finish(self, response: httpx.Response) -> None:
        """Reads what nobody wants, so that the connection can be used again, if it is little."""
        try:
            self._bounded_body(response, "", _MAX_SMALL_BYTES)
        except (*HTTP_ERRORS, RemoteDamaged):
            pass
        finally:
            response.close()

    def _send(self, request: OciRequest, url: httpx.URL) -> httpx.Response:
        headers = dict(request.headers)
        if self._is_ours(url) and (authorization := self._auth.header(request.scope)):
            headers["Authorization"] = authorization
        content = request.content() if request.content else None
        return self._client.send(
            self._client.build_request(request.method, url, headers=headers, content=content), stream=True
        )

    def _is_ours(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, _port(url)) == (self._origin.scheme, self._origin.host, _port(self._origin))

    def _redirected(self, url: httpx.URL, location: str, what: str) -> httpx.URL:
        target = url.join(location)
        if self._is_ours(target) or (target.scheme == "https" and _may_be_told(target.host, self._origin.host)):
            return target.copy_with(userinfo=b"")
        raise RemoteRefused(str(self._url), f"{what}: it redirects to {_shown(str(target))}, which is not followed")

    def _check(self, response: httpx.Response, request: OciRequest) -> None:
        status = response.status_code
        if status in request.accept:
            return
        problem = f"{request.what}: it answered {status}{self._error_code(response)}"
        if status == 404:
            raise AdapterNotFound(f"{self._url}: no {request.what}")
        if status in _BUSY:
            raise ServerFailed(str(self._url), problem, status)
        raise RemoteRefused(str(self._url), problem)

    def _error_code(self, response: httpx.Response) -> str:
        try:
            body = self._bounded_body(response, "", _MAX_SMALL_BYTES)
            code = json.loads(body)["errors"][0]["code"]
            return f" {code}" if _ERROR_CODE.fullmatch(code) else ""
        except (*HTTP_ERRORS, *MALFORMED, RemoteDamaged):
            return ""

    def _bounded_body(self, response: httpx.Response, what: str, max_bytes: int) -> bytes:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > max_bytes:
                raise RemoteDamaged(str(self._url), f"{what}: more than {max_bytes} bytes")
        return bytes(body)

    def _fetch_token(self, request: TokenRequest) -> Mapping[str, Any]:
        realm = httpx.URL(request.realm)
        is_safe = realm.scheme == "https" or (
            realm.scheme == "http" and not self._url.secure and (is_loopback(realm.host) or self._is_ours(realm))
        )
        if not is_safe:
            raise RemoteRefused(str(self._url), f"it wants a token from {_shown(request.realm)}, expected https")
        headers = {"Authorization": request.authorization} if request.authorization else {}
        method, data = ("POST", dict(request.form)) if request.form else ("GET", None)
        target = realm.copy_with(query=None) if request.form else realm.copy_merge_params(dict(request.query))
        asked = self._client.build_request(method, target, headers=headers, data=data)
        response = self._client.send(asked, stream=True)
        try:
            if response.status_code in _BUSY:
                raise ServerFailed(str(self._url), f"its token server answered {response.status_code}", 0)
            if response.status_code != 200:
                raise RemoteRefused(str(self._url), f"its token server answered {response.status_code}")
            document = json.loads(self._bounded_body(response, "its token", _MAX_SMALL_BYTES))
        finally:
            response.close()
        if not isinstance(document, dict):
            raise ValueError("the token server gave no JSON object")
        return document

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns what goes wrong on the way into errors that name the remote."""
        try:
            yield
        except HTTP_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise RemoteUnavailable(str(self._url), f"{what}: {_shown(reason)}") from error
        except ValueError as error:  # what was to prove who we are
            raise RemoteRefused(str(self._url), f"{what}: {_shown(str(error))}") from error


def quoted(text: str) -> str:
    """A part of a path, or of a query."""
    return quote(text, safe="")


def _port(url: httpx.URL) -> int | None:
    return url.port or {"https": 443, "http": 80}.get(url.scheme)


def _may_be_told(host: str, origin: str) -> bool:
    """Whether a redirect to a host is followed: not from the world into this network, and never link-local."""
    address = _address(host)
    if address is None or address.is_global:
        return host != "localhost" or is_loopback(origin)
    ours = _address(origin)
    return not address.is_link_local and ours is not None and not ours.is_global


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return ascii(text[:200])[1:-1]
