import asyncio
import threading

import pytest

from hotshoe.registry.errors import InvalidUpload
from hotshoe.server.services.chunk_writer import MAX_WAITING, ChunkWriter


class Upload:
    """Notes what it is given, and by how many threads at once."""

    def __init__(self, *, fails_at: int = -1) -> None:
        self.fails_at = fails_at
        self.written: list[int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()
        self._alone = threading.Lock()

    def write(self, offset: int, data: bytes) -> None:
        assert self._alone.acquire(blocking=False), "two threads at once"
        self.begun.set()
        assert self.may_go_on.wait(100)
        if offset == self.fails_at:
            self._alone.release()
            raise InvalidUpload("gap")
        self.written.append(offset)
        self._alone.release()


def test_chunks_are_written_in_order_by_one_thread_at_a_time() -> None:
    async def run() -> list[int]:
        upload = Upload()
        writer = ChunkWriter(upload)  # type: ignore[arg-type]
        for offset in range(300):
            await writer.put(offset, b"x")
            if offset % 50 == 0:
                await asyncio.sleep(0.002)  # the thread ends, and another begins
        await writer.finish()
        await writer.stop()
        return upload.written

    assert asyncio.run(run()) == list(range(300))


def test_who_sends_faster_than_is_written_waits() -> None:
    async def run() -> None:
        upload = Upload()
        upload.may_go_on.clear()
        writer = ChunkWriter(upload)  # type: ignore[arg-type]
        putting = asyncio.ensure_future(_put_all(writer, 20))
        await asyncio.sleep(0.1)
        assert not putting.done() and len(writer._waiting) <= MAX_WAITING
        upload.may_go_on.set()
        await asyncio.wait_for(putting, 100)
        await writer.finish()
        assert upload.written == list(range(20))

    asyncio.run(run())


async def _put_all(writer: ChunkWriter, count: int) -> None:
    for offset in range(count):
        await writer.put(offset, b"x")


@pytest.mark.parametrize("fails_at", [0, 3, 19])
def test_what_writing_raises_reaches_who_sends(fails_at: int) -> None:
    async def run() -> None:
        upload = Upload(fails_at=fails_at)
        writer = ChunkWriter(upload)  # type: ignore[arg-type]
        with pytest.raises(InvalidUpload):
            await _put_all(writer, 20)
            await writer.finish()
        await writer.stop()
        assert upload.written == list(range(fails_at))

    asyncio.run(run())


def test_a_cancelled_sender_leaves_no_thread_behind() -> None:
    async def run() -> None:
        upload = Upload()
        upload.may_go_on.clear()
        writer = ChunkWriter(upload)  # type: ignore[arg-type]
        putting = asyncio.ensure_future(_put_all(writer, 20))
        assert await asyncio.to_thread(upload.begun.wait, 100)
        putting.cancel()
        asyncio.get_running_loop().call_later(0.05, upload.may_go_on.set)
        await writer.stop()
        assert upload.may_go_on.is_set() and len(upload.written) <= 1
        written = list(upload.written)
        await asyncio.sleep(0.05)
        assert upload.written == written

    asyncio.run(run())
