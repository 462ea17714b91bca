"""The OpenAI port takes so many connections and no more; what does not speak, or not TLS, holds a place for a time."""

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from certificates import needs_openssl, self_signed

from hotshoe.registry.http.threads import tls_context
from hotshoe.server.openai import listener
from hotshoe.server.openai.listener import listen

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[..., Awaitable[Stream]]


@asynccontextmanager
async def serving(*, max_connections: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connect]:
    """A port that answers each GET; gives what connects to it, and closes all that did."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="here")

    application = web.Application()
    application.router.add_get("/", answer)
    port, stop = await listen(application, "127.0.0.1", 0, tls, max_connections=max_connections)
    opened: list[Stream] = []

    async def connect(**options: Any) -> Stream:
        opened.append(await asyncio.open_connection("127.0.0.1", port, **options))
        return opened[-1]

    try:
        yield connect
    finally:
        for _, writer in opened:
            writer.close()
        await stop()


async def answered(stream: Stream) -> bool:
    """Whether a request on a connection is answered; else it has been closed."""
    reader, writer = stream
    try:
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(4)
    except (OSError, asyncio.IncompleteReadError):
        return False
    return head.startswith(b"HTTP/1.1 200")


async def answered_at_last(connect: Connect, **options: Any) -> None:
    """Returns once a new connection is answered: the server may not have noticed yet that another has gone."""
    while True:
        try:
            if await answered(await connect(**options)):
                return
        except OSError:
            pass
        await asyncio.sleep(0.02)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(limited())


def test_a_connection_too_many_is_closed_and_those_before_it_are_answered() -> None:
    async def main() -> None:
        async with serving(max_connections=3) as connect:
            kept = [await connect() for _ in range(3)]
            assert [await answered(stream) for stream in kept] == [True] * 3
            assert not await answered(await connect())
            assert [await answered(stream) for stream in kept] == [True] * 3
            kept[0][1].close()
            await answered_at_last(connect)

    run(main)


def test_connections_that_come_at_once_are_each_counted_once() -> None:
    async def main() -> None:
        async with serving(max_connections=8) as connect:
            _, writer = await connect()
            address = writer.get_extra_info("peername")
            together = [socket.create_connection(address) for _ in range(7)]  # before the server has a turn
            streams = [await asyncio.open_connection(sock=connection) for connection in together]
            try:
                assert [await answered(stream) for stream in streams] == [True] * 7
            finally:
                for _, writer in streams:
                    writer.close()

    run(main)


@needs_openssl
def test_a_connection_that_does_not_shake_hands_holds_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_HANDSHAKE_SECONDS", 100.0)
    certificate, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def main() -> None:
        async with serving(max_connections=3, tls=tls_context(certificate, key)) as connect:
            served = await connect(ssl=trusting)
            assert await answered(served)
            silent = [await connect() for _ in range(2)]  # plain connections that say nothing
            with pytest.raises(OSError):
                await connect(ssl=trusting)
            assert await answered(served)
            silent[0][1].close()
            await answered_at_last(connect, ssl=trusting)

    run(main)


@needs_openssl
def test_what_does_not_speak_tls_leaves_no_place_taken(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)

    async def main() -> None:
        async with serving(max_connections=2, tls=tls_context(certificate, key)) as connect:
            for _ in range(5):
                assert not await answered(await connect())
            await answered_at_last(connect, ssl=ssl.create_default_context(cafile=str(certificate)))

    run(main)


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.2)

    async def main() -> None:
        async with serving(max_connections=2) as connect:
            silent, slow = await connect(), await connect()
            slow[1].write(GET[:10])
            assert await silent[0].read() == b""
            assert await slow[0].read() == b""

    run(main)


def test_a_connection_waits_without_a_busy_loop_while_no_file_is_left_for_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures, taken = [], []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def noted(waiting: socket.socket) -> Any:
            try:
                return await accept(waiting)
            except OSError as error:
                failures.append(error.errno)
                raise

        loop.sock_accept = noted  # type: ignore[method-assign]
        async with serving(max_connections=3) as connect:
            served = await connect()
            assert await answered(served)
            with socket.socket() as client:
                client.setblocking(False)
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
                    with suppress(OSError):  # those that others have closed since
                        while True:
                            taken.append(os.open(os.devnull, os.O_RDONLY))
                    await loop.sock_connect(client, served[1].get_extra_info("peername"))
                    while len(failures) < 2:
                        await asyncio.sleep(0.02)
                    assert await answered(served)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for number in taken:
                        os.close(number)
                await loop.sock_sendall(client, GET)
                assert await loop.sock_recv(client, 12) == b"HTTP/1.1 200"

    run(main)
    assert set(failures) == {errno.EMFILE}
    assert len(failures) < 20


def test_stopping_ends_open_connections() -> None:
    async def main() -> None:
        async with serving(max_connections=3) as connect:
            stream = await connect()
            assert await answered(stream)
        assert await stream[0].read() == b""

    run(main)
