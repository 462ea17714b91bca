"""HTTP connections whose every exchange ends in time.

httpx bounds the silence between two reads; a server that sends a byte now and then is silent never. So each exchange
also has an end, which every read and write of its connection obeys.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

# The end of the exchange that this thread is at, in monotonic seconds.
_end: ContextVar[float] = ContextVar("end", default=float("inf"))

_MAX_CONNECTIONS = 16
_MAX_IDLE = 4
_IDLE_SECONDS = 15.0
_READ_BYTES = 1 << 20

# What the transport below raises when an exchange fails.
HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) + (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends every read and write of this thread's connections after so long, with a timeout."""
    before = _end.get()
    _end.set(min(before, time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.set(before)


class PatientTransport(httpx.BaseTransport):
    """Connections that keep to `within`. No proxy is taken from the environment."""

    def __init__(self) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        stream = request.stream
        assert isinstance(stream, httpx.SyncByteStream)
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions)

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._sockets.connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # As much as has come: each piece costs as many steps through httpcore, whatever its size.
        return self._stream.read(max(max_bytes, _READ_BYTES), _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def _left(timeout: float | None, too_late: type[httpcore.TimeoutException]) -> float:
    left = _end.get() - time.monotonic()
    if left <= 0:
        raise too_late("the exchange took too long")
    return left if timeout is None else min(timeout, left)
