"""Serves a registry to OCI clients by HTTP or HTTPS, read only."""

import ssl

from hotshoe.registry.http.distribution import Distribution, unauthorized
from hotshoe.registry.http.threads import HttpThreads, RequestHandler
from hotshoe.registry.http.users import HttpUsers

_IDLE_SECONDS = 30.0  # a connection that has not said in that time what it wants, or takes nothing, is closed


def registry_http_server(
    host: str,
    port: int,
    distribution: Distribution,
    *,
    tls: ssl.SSLContext | None = None,
    users: HttpUsers | None = None,
) -> HttpThreads:
    """A server that has not started yet; see `HttpThreads`. With `users`, nobody else is told anything."""
    return HttpThreads(host, port, _handler(distribution, users), name="registry-http", tls=tls)


def _handler(distribution: Distribution, users: HttpUsers | None) -> type[RequestHandler]:
    class Handler(RequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE_SECONDS

        def _answer(self) -> None:
            if users is None or users.admits(self.headers.get("Authorization", "")):
                answer = distribution.answer(self.command, self.path, byte_range=self.headers.get("Range", ""))
            else:
                answer = unauthorized()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(answer.content_length))
                if self.command not in ("GET", "HEAD") or self.has_body:
                    self.close_connection = True  # what it sends is not read, and must not be taken for a request
                    self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    for part in answer.chunks():
                        self.wfile.write(part)
            finally:
                answer.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

    return Handler
