"""/metrics for scrapers and /health for probes, on a port of their own: a full gRPC server still answers there."""

import json
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from hotshoe.registry.http.threads import HttpThreads, RequestHandler
from hotshoe.server.config import Address
from hotshoe.server.logs import log_event

_IDLE_SECONDS = 10.0  # a connection that has not said in that time what it wants is closed


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
        self._threads = HttpThreads(address.host, address.port, _handler(health, metrics), name="http")
        self.address = address.with_port(self._threads.port)
        self.start, self.stop = self._threads.start, self._threads.stop


def _handler(
    health: Callable[[], tuple[bool, Mapping[str, Any]]], metrics: Callable[[str], tuple[bytes, str]]
) -> type[RequestHandler]:
    class Handler(RequestHandler):
        timeout = _IDLE_SECONDS

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

    return Handler
