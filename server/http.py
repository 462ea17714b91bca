"""/metrics for scrapers and /health for probes, on a port of their own: a full gRPC server still answers there."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hotshoe.server.config import Address
from hotshoe.server.logs import log_event

_IDLE_SECONDS = 10.0  # a connection that says nothing is closed
_MAX_CONNECTIONS = 64


class HttpServer:
    """Answers on threads of its own from `start` to `stop`.

    Args:
        address: where to listen; port 0 takes a free one.
        health: whether the server can answer, and what to say about it.
        metrics: (Accept header) → (body, content type).

    Raises:
        OSError: the address is taken or not ours.
    """

    def __init__(
        self,
        address: Address,
        *,
        health: Callable[[], tuple[bool, Mapping[str, Any]]],
        metrics: Callable[[str], tuple[bytes, str]],
    ) -> None:
        server_class = _ServerV6 if ":" in address.host else _Server
        self._server = server_class((address.host, address.port), _handler(health, metrics))
        self.address = address.with_port(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is no event."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


def _handler(
    health: Callable[[], tuple[bool, Mapping[str, Any]]], metrics: Callable[[str], tuple[bytes, str]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _IDLE_SECONDS
        server_version = "hotshoe"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            try:
                if path == "/health":
                    self._answer_health()
                elif path == "/metrics":
                    body, content_type = metrics(self.headers.get("Accept", ""))
                    self._answer(HTTPStatus.OK, body, content_type)
                else:
                    self._answer(HTTPStatus.NOT_FOUND, b"not found: try /metrics or /health\n", "text/plain")
            except OSError:
                raise
            except Exception as error:
                log_event(logging.ERROR, "http_error", error=error, path=path)
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n", "text/plain")

        do_HEAD = do_GET

        def _answer_health(self) -> None:
            serving, details = health()
            status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, json.dumps(details).encode() + b"\n", "application/json")

        def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes and scrapes are no events."""

    return Handler
