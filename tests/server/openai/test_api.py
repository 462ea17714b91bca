import asyncio

import pytest
from aiohttp import web

from hotshoe.server.openai import api
from hotshoe.server.openai.listener import listen


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_SECONDS", 0.1)

    async def read(request: web.Request) -> web.Response:
        return web.json_response(await api._json(request))

    async def main() -> bytes:
        application = web.Application(middlewares=[api._errors_as_json])
        application.router.add_post("/", read)
        port, stop = await listen(application, "127.0.0.1", 0, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST / HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        writer.write(head.encode())
        answered = await asyncio.wait_for(reader.readline(), 60)
        writer.close()
        await stop()
        return answered

    assert b" 408 " in asyncio.run(main())
