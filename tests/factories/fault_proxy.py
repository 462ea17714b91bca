"""A little HTTP server between a client and a registry, which spoils the answers that it is told to spoil."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the registry answered, about to be sent on by a fault."""

    status: int
    headers: dict[str, str]
    body: bytes
    write: Callable[[bytes], None]
    hold: Callable[[float], None]  # waits, or until the proxy ends

    def head(self, **changes: str) -> bytes:
        """Status line and headers; None-like "" drops one."""
        headers = {**self.headers, **{key.replace("_", "-"): value for key, value in changes.items()}}
        lines = [f"HTTP/1.1 {self.status} Whatever", *(f"{key}: {value}" for key, value in headers.items() if value)]
        return "\r\n".join([*lines, "", ""]).encode()


Fault = Callable[[Answer], None]
Matches = Callable[[str, str], bool]  # method, path


class FaultProxy:
    """Listens on 127.0.0.1. `spoil` says which answers a fault sends instead; all others pass.

    Attributes:
        requests: how often each "METHOD path" came.
        sent_bytes: of spoilt answers, as far as the client took them.
    """

    def __init__(self, upstream: str) -> None:
        self.requests: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.sent_bytes = 0
        self._ended = threading.Event()
        self._fault: tuple[Matches, Fault] | None = None
        self._server = _Server(("127.0.0.1", 0), _handler(self, upstream))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def spoil(self, matches: Matches, fault: Fault) -> None:
        self._fault = (matches, fault)
        self.sent_bytes = 0

    def pass_all(self) -> None:
        self._fault = None

    def fault_for(self, method: str, path: str) -> Fault | None:
        spoilt = self._fault  # which a late request must not find taken away between two looks
        return spoilt[1] if spoilt and spoilt[0](method, path) else None

    def hold(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a herd connects at once


def _handler(proxy: FaultProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            with proxy.counting:
                proxy.requests[f"{self.command} {self.path}"] += 1
            proxy.headers.append((f"{self.command} {self.path}", dict(self.headers)))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # With the client's Host, so that the registry names us in its Location.
            connection = http.client.HTTPConnection(upstream, timeout=100)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            headers = {key: value for key, value in response.getheaders() if key.lower() != "transfer-encoding"}
            if "Content-Length" not in headers:
                headers["Content-Length"] = str(len(content))
            answer = Answer(response.status, headers, content, self._write, proxy.hold)
            fault = proxy.fault_for(self.command, self.path)
            if fault is None:
                self.wfile.write(answer.head() + (b"" if self.command == "HEAD" else content))
                return
            self.close_connection = True
            with suppress(OSError):  # the client has had enough
                fault(answer)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = forward

        def _write(self, data: bytes) -> None:
            self.wfile.write(data)
            proxy.sent_bytes += len(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def position_of(where: str, size: int) -> int:
    """ "first", "middle" or "last" byte of so many."""
    return {"first": 0, "middle": size // 2, "last": size - 1}[where]


def endless(chunk: bytes) -> Iterator[bytes]:
    while True:
        yield chunk
