"""The port of an HTTP application, on the running event loop."""

import logging
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

_STOP_SECONDS = 0.5  # for what is written but not sent
_UNHEARD = logging.getLogger("hotshoe.openai.wire")  # what is no HTTP is answered as such, and no event
_UNHEARD.disabled = True


async def listen(
    application: web.Application, host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Serves it; a client that goes away ends its request. Returns the port, and what ends it all.

    Raises:
        OSError: the address is taken or not ours.
    """
    runner = web.AppRunner(
        application,
        handler_cancellation=True,
        handle_signals=False,
        access_log=None,
        logger=_UNHEARD,
        shutdown_timeout=_STOP_SECONDS,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner.addresses[0][1], runner.cleanup
