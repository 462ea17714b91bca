import json
import resource
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from hotshoe.registry.http import threads as http_threads
from hotshoe.registry.http.threads import HttpThreads, RequestHandler
from hotshoe.server.config import Address
from hotshoe.server.http import HttpServer


class Probed:
    """A server on a free port, with a health that tests set."""

    def __init__(self) -> None:
        self.serving = True
        self.accepted = ""
        self.server = HttpServer(Address("127.0.0.1", 0), health=self._health, metrics=self._metrics)
        self.server.start()

    def _health(self) -> tuple[bool, dict[str, Any]]:
        return self.serving, {"status": "serving" if self.serving else "stuck"}

    def _metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepted = accept
        if accept == "break":
            raise RuntimeError("secret /path")
        return b"up 1\n", "text/plain; version=0.0.4"

    def get(self, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, bytes, str]:
        request = urllib.request.Request(
            f"http://{self.server.address}{path}", method=method, headers={"Accept": accept}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read(), response.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers["Content-Type"]


@pytest.fixture
def probed() -> Iterator[Probed]:
    probed = Probed()
    yield probed
    probed.server.stop()


def test_health_is_200_while_serving_and_503_otherwise(probed: Probed) -> None:
    status, body, content_type = probed.get("/health")
    assert (status, json.loads(body), content_type) == (200, {"status": "serving"}, "application/json")
    probed.serving = False
    status, body, _ = probed.get("/health")
    assert (status, json.loads(body)) == (503, {"status": "stuck"})


def test_metrics_are_given_as_the_accept_header_asks(probed: Probed) -> None:
    assert probed.get("/metrics?x=1", accept="text/plain") == (200, b"up 1\n", "text/plain; version=0.0.4")
    assert probed.accepted == "text/plain"


def test_head_answers_without_a_body(probed: Probed) -> None:
    assert probed.get("/metrics", method="HEAD")[:2] == (200, b"")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/%2e"])
def test_other_paths_are_not_found(probed: Probed, path: str) -> None:
    assert probed.get(path)[0] == 404


def test_other_methods_are_refused(probed: Probed) -> None:
    assert probed.get("/metrics", method="DELETE")[0] == 501


def test_a_failing_scrape_tells_nothing_of_why(probed: Probed) -> None:
    status, body, _ = probed.get("/metrics", accept="break")
    assert status == 500
    assert b"secret" not in body
    assert probed.get("/health")[0] == 200


def test_a_port_that_is_taken_is_an_error(probed: Probed) -> None:
    with pytest.raises(OSError):
        HttpServer(probed.server.address, health=probed._health, metrics=probed._metrics)


def test_idle_connections_beyond_the_limit_are_closed_and_others_served(probed: Probed) -> None:
    address = (probed.server.address.host, probed.server.address.port)
    idle = [socket.create_connection(address, timeout=60) for _ in range(80)]
    try:
        assert idle[-1].recv(1) == b""
        for connection in idle:
            connection.close()
        assert _answered_at_last(probed)
    finally:
        for connection in idle:
            connection.close()


def _answered_at_last(probed: Probed) -> bool:
    """Whether there is an answer, once the server has noticed that others have gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return probed.get("/health")[0] == 200
        except OSError:
            time.sleep(0.02)
    return False


def test_a_connection_waits_without_a_busy_loop_while_no_file_is_left_for_it(probed: Probed) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    listener, tries = probed.server._threads._server, []
    accept = listener.get_request
    listener.get_request = lambda: tries.append(1) or accept()
    with socket.socket() as waiting:
        waiting.settimeout(60)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
            began = time.monotonic()
            waiting.connect((probed.server.address.host, probed.server.address.port))
            waiting.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            time.sleep(0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert waiting.recv(12) == b"HTTP/1.0 200"
    assert len(tries) <= 2 + (time.monotonic() - began) / http_threads._RETRY_SECONDS


def test_a_request_that_comes_byte_by_byte_holds_its_thread_for_so_long_and_no_longer() -> None:
    class Hasty(RequestHandler):
        timeout = 0.5

    server = HttpThreads("127.0.0.1", 0, Hasty, name="hasty")
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as connection:
            assert any(_is_closed_after(connection, b"G") for _ in range(600))
    finally:
        server.stop()


def _is_closed_after(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
