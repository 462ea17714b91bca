"""An HTTP or HTTPS server on threads, one a connection and not too many of them."""

import io
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_MAX_CONNECTIONS = 64
_HANDSHAKE_SECONDS = 10.0
_RETRY_SECONDS = 0.1


class HttpThreads:
    """Answers from `start` to `stop`.

    Args:
        host, port: where to listen; port 0 takes a free one.
        handler: what answers.
        name: of the thread that accepts connections.
        tls: who we are to clients; None: plain HTTP.

    Raises:
        OSError: the address is taken or not ours.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handler: "type[RequestHandler]",
        *,
        name: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._server = (_ServerV6 if ":" in host else _Server)((host, port), handler, tls)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name=name, daemon=True
        )

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Takes no more connections, and gives the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class RequestHandler(BaseHTTPRequestHandler):
    """Answers one connection. Within `timeout` seconds of the last answer the next request's head must be there whole:
    so nobody holds a thread by sending a byte now and then.
    """

    timeout = 30.0
    server_version = "hotshoe"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self._incoming = _Incoming(self.connection, self.timeout)
        self.rfile.close()
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.expect(self.timeout)
        super().handle_one_request()

    @property
    def has_body(self) -> bool:
        """Whether the request says that more comes than its head."""
        return "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0").strip() != "0"

    def log_message(self, format: str, *args: Any) -> None:
        """Probes, scrapes and pulls are no events."""


class _Incoming(io.RawIOBase):
    """What a connection sends, as far as it comes in time. Writing to it has as long for each piece."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self.expect(seconds)

    def expect(self, seconds: float) -> None:
        """Whatever is read from now on must come in so many seconds."""
        self._seconds, self._until = seconds, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no request came in time")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Who a server is, from PEM files: its certificate chain and its private key. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # else it would ask the terminal for one
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise OSError(f"cannot read the certificate {certificate} with the key {key}: {reason}") from error
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[RequestHandler], tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:  # no file is left for the connection, which waits on: without a pause this would be a loop
            time.sleep(_RETRY_SECONDS)
            raise

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

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection. Its handshake is here: on its own thread, where it keeps no one waiting."""
        if self._tls is None:
            return super().finish_request(request, client_address)
        request.settimeout(_HANDSHAKE_SECONDS)
        with self._tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is no event."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6
