"""The ports that a server listens on. Each is taken before anybody is served, and told in one line if it cannot be."""

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from hotshoe.protos.v1 import chunks
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.http.threads import tls_context
from hotshoe.registry.http.users import HttpUsers, InvalidUsers
from hotshoe.registry.registry import Registry
from hotshoe.server import open_files
from hotshoe.server.config import Address, ServerConfig
from hotshoe.server.http import HttpServer
from hotshoe.server.metrics import Metrics
from hotshoe.server.services.health import Health
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.startup import StartupError

if TYPE_CHECKING:
    from aiohttp import web

_GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server takes half the connections of the first
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.http2.max_ping_strikes", 0),  # else a long prefill ends with "too_many_pings"
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.server_handshake_timeout_ms", 10_000),  # who says nothing holds a connection for so long
    *chunks.WINDOW_OPTIONS,
)


def check_free(flag: str, address: Address) -> None:
    """Raises StartupError if a port is taken, which gRPC would say in two lines, and not why in the second; or if there
    is no such host.
    """
    try:
        places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(flag, address, error) from error
    for family, kind, _, _, place in places:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _cannot_listen(flag, address, error) from error


def _cannot_listen(flag: str, address: Address, error: Exception) -> StartupError:
    reason = getattr(error, "strerror", None) or error
    return StartupError(f"{flag}: cannot listen on {address}: {reason}")


def bind_grpc(config: ServerConfig, interceptor: RpcInterceptor) -> tuple[grpc.aio.Server, Address]:
    """Takes the gRPC port, before the base is loaded: one that is in use should not take minutes to notice.

    Raises StartupError.
    """
    connections = ("grpc.max_allowed_incoming_connections", open_files.connections())
    server = grpc.aio.server(interceptors=(interceptor,), options=(*_GRPC_OPTIONS, connections))
    address = config.listen
    check_free("--listen", address)
    try:
        credentials = _credentials(config)
    except OSError as error:
        raise StartupError(f"--tls-cert: {error}") from error
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except (RuntimeError, OSError) as error:
        raise _cannot_listen("--listen", address, error) from error
    return server, address.with_port(port)


def start_http(
    config: ServerConfig, health: Health, metrics: Metrics, cleanup: contextlib.AsyncExitStack
) -> HttpServer | None:
    """Serves health and metrics from now on, unless nobody asked for it. Raises StartupError."""
    if config.http is None:
        return None
    try:
        server = HttpServer(config.http, health=health.report, metrics=metrics.scrape)
    except OSError as error:
        raise _cannot_listen("--http", config.http, error) from error
    cleanup.callback(server.stop)
    server.start()
    return server


def start_registry_http(config: ServerConfig, registry: Registry, cleanup: contextlib.AsyncExitStack) -> Address | None:
    """Serves the registry to OCI clients from now on, unless nobody asked for it. Raises StartupError."""
    address = config.registry_http
    if address is None:
        return None
    certificate, key = config.registry_http_tls_cert, config.registry_http_tls_key
    try:
        tls = tls_context(certificate, key) if certificate and key else None
    except OSError as error:
        raise StartupError(f"--registry-http-tls-cert: {error}") from error
    try:
        users = HttpUsers(config.registry_http_users) if config.registry_http_users else None
    except (InvalidUsers, OSError) as error:
        raise StartupError(f"--registry-http-users: {error}") from error
    try:
        server = registry_http_server(address.host, address.port, Distribution(registry), tls=tls, users=users)
    except OSError as error:
        raise _cannot_listen("--registry-http", address, error) from error
    cleanup.callback(server.stop)
    server.start()
    return address.with_port(server.port)


async def start_openai(
    config: ServerConfig, application: "Callable[[], web.Application]", cleanup: contextlib.AsyncExitStack
) -> Address | None:
    """Serves OpenAI's API from now on, unless nobody asked for it. Raises StartupError."""
    address = config.openai
    if address is None:
        return None
    try:
        from hotshoe.server.openai.listener import listen
    except ModuleNotFoundError as error:
        raise StartupError(f"--openai: {error}; pip install 'hotshoe[openai]'") from error
    certificate, key = config.tls_cert, config.tls_key
    tls = tls_context(certificate, key) if certificate and key else None
    try:
        port, stop = await listen(application(), address.host, address.port, tls)
    except OSError as error:
        raise _cannot_listen("--openai", address, error) from error
    cleanup.push_async_callback(stop)
    return address.with_port(port)


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    cert, key = config.tls_cert, config.tls_key
    if cert is None or key is None:
        return None
    tls_context(cert, key)  # names what cannot be used: gRPC would only say that it could not bind
    return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
