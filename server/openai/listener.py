"""The port of an HTTP application, on the running event loop, and not too many connections to it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

MAX_CONNECTIONS = 1024  # well beyond what runs and waits; each is a file and some buffers
IDLE_SECONDS = 75.0  # a connection that has not said in that time what it wants is closed
_HANDSHAKE_SECONDS = 10.0
_STOP_SECONDS = 0.5  # for what is written but not sent
_RETRY_SECONDS = 0.1
_BACKLOG = 128
_UNHEARD = logging.getLogger("hotshoe.openai.wire")  # what is no HTTP is answered as such, and no event
_UNHEARD.disabled = True


async def listen(
    application: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    max_connections: int = MAX_CONNECTIONS,
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Serves it; a client that goes away ends its request, and one connection too many is closed at once.

    Returns the port, and what ends it all.

    Raises:
        OSError: the address is taken or not ours.
    """
    sockets = await _bind(host, port)
    runner = web.AppRunner(
        application,
        handler_cancellation=True,
        handle_signals=False,
        access_log=None,
        logger=_UNHEARD,
        shutdown_timeout=_STOP_SECONDS,
        keepalive_timeout=IDLE_SECONDS,
    )
    try:
        await runner.setup()
    except BaseException:
        _close(sockets)
        raise
    door = _Door(runner, tls, max_connections)
    accepting = [asyncio.create_task(door.accept_from(listener)) for listener in sockets]

    async def stop() -> None:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        _close(sockets)
        await door.close()
        await runner.cleanup()

    return sockets[0].getsockname()[1], stop


class _Door:
    """Lets connections in: those that shake hands yet count as those that are served."""

    def __init__(self, runner: web.AppRunner, tls: ssl.SSLContext | None, max_connections: int) -> None:
        self._runner = runner
        self._tls = tls
        self._max_connections = max_connections
        self._entering: dict[asyncio.Task[None], web.RequestHandler] = {}

    async def accept_from(self, listener: socket.socket) -> None:
        """Goes on until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # else nobody else would have a turn while connections wait to be taken
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no file is left for the connection, which waits on: without a pause this would be a loop
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if self._count() >= self._max_connections:
                connection.close()
                continue
            assert self._runner.server is not None
            handler = self._runner.server()
            entering = asyncio.create_task(self._enter(connection, handler))
            self._entering[entering] = handler
            entering.add_done_callback(self._entering.pop)

    async def close(self) -> None:
        """Ends the handshakes that go on; those who are in are the runner's."""
        for entering in self._entering:
            entering.cancel()
        await asyncio.gather(*self._entering, return_exceptions=True)

    def _count(self) -> int:
        served = self._runner.server  # knows of those that have just entered, too
        return len({*self._entering.values(), *(served.connections if served else ())})

    async def _enter(self, connection: socket.socket, handler: web.RequestHandler) -> None:
        limits = {"ssl_handshake_timeout": _HANDSHAKE_SECONDS} if self._tls else {}
        with contextlib.suppress(OSError):  # it went away, or does not speak TLS: no event
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler, connection, ssl=self._tls, **limits
            )


async def _bind(host: str, port: int) -> list[socket.socket]:
    """A listening socket of each address of a host. Raises OSError."""
    places = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(places):
            listener = socket.create_server(place, family=socket.AddressFamily(family), backlog=_BACKLOG)
            listener.setblocking(False)
            sockets.append(listener)
    except BaseException:
        _close(sockets)
        raise
    return sockets


def _close(sockets: list[socket.socket]) -> None:
    for listener in sockets:
        listener.close()
