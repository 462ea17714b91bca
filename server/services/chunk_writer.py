"""An upload's chunks, written on a thread while further ones come."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from hotshoe.registry.store.uploads import Upload
from hotshoe.server.services.rpc import call

MAX_WAITING = 4  # chunks, beside the one that is being written


class ChunkWriter:
    """Writes the chunks of one upload, in order. Event loop only.

    It has a thread of the executor only while there is something to write, not while its caller is slow.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._waiting: deque[Callable[[], object]] = deque()  # the loop appends, the thread takes
        self._writing: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def put(self, offset: int, data: bytes | memoryview) -> None:
        """Takes the next chunk, and waits while too many wait already. Raises what writing an earlier one raised."""
        self._waiting.append(partial(self._upload.write, offset, data))
        self._go_on()
        while len(self._waiting) >= MAX_WAITING:
            self._room.clear()
            if len(self._waiting) >= MAX_WAITING:  # or the thread took one just before it could tell
                await self._room.wait()
            self._go_on()

    async def name(self, digest: str) -> bool:
        """As `Upload.name`, once what came before is written."""
        await self.finish()
        return await call(self._upload.name, digest)

    async def finish(self) -> None:
        """Waits until all is written. Raises what writing raised."""
        while self._waiting or self._writing is not None:
            self._go_on()
            if self._writing is not None:
                await asyncio.wait([self._writing])

    async def stop(self) -> None:
        """Waits for the thread, which an upload is used by alone; what it has not written yet, it never does."""
        self._waiting.clear()
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.exception()  # somebody looked

    def _go_on(self) -> None:
        """Has a thread write what waits, unless one is at it."""
        if self._writing is not None and self._writing.done():
            ended, self._writing = self._writing, None
            ended.result()
        if self._writing is None and self._waiting:
            self._writing = asyncio.ensure_future(call(self._write))
            self._writing.add_done_callback(lambda _: self._room.set())

    def _write(self) -> None:
        while self._waiting:
            step = self._waiting.popleft()
            if len(self._waiting) < MAX_WAITING // 2 and not self._room.is_set():
                self._loop.call_soon_threadsafe(self._room.set)
            step()
