"""Calls of what blocks on the disk: no thread waits for a remote that gives a damaged blob again."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_adapters import WEIGHTS, lora_files, publish

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import BlobCorrupt, RemoteUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.server.services.rpc import call_in

FILES = lora_files(1)
LIMIT = 100.0  # seconds, for what takes a fraction of one


class StalledSource:
    """A remote that gives the weights once it may."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.fetches = 0
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.may_go_on = threading.Event()
        self.failure: Exception | None = None

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        self.fetches += 1
        self._loop.call_soon_threadsafe(self.asked.set)
        assert self.may_go_on.wait(LIMIT)
        if self.failure:
            raise self.failure
        with self._registry.open_upload(blob) as upload:
            upload.write(0, FILES[WEIGHTS])
            upload.finish()
        return True

    def note(self, digest: str, *, healed: bool) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def damaged(registry: Registry, tmp_path: Path) -> str:
    """The digest of an adapter whose weights are lost."""
    record, _ = publish(registry, "a", FILES)
    weights = next(file.digest for file in record.files if file.file_name == WEIGHTS)
    (tmp_path / "blobs" / "sha256" / digest_hex(weights)).unlink()
    return record.digest


def test_other_calls_go_on_while_many_wait_for_a_remote_that_stands_still(registry: Registry, damaged: str) -> None:
    async def run() -> None:
        source = StalledSource(registry)
        registry.heal_from(source)
        with ThreadPoolExecutor(1) as executor:
            waiting = [asyncio.ensure_future(call_in(executor, registry.adapter_files, damaged)) for _ in range(8)]
            await source.asked.wait()
            assert await call_in(executor, registry.names) == ["a"]
            waiting.pop().cancel()  # one of them goes away, and the others get it all the same
            await asyncio.sleep(0)
            source.may_go_on.set()
            for files in await asyncio.gather(*waiting):
                assert files[WEIGHTS].read_bytes() == FILES[WEIGHTS]
        assert source.fetches == 1

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_what_cannot_be_healed_is_told_as_it_is(registry: Registry, damaged: str) -> None:
    async def run() -> None:
        with pytest.raises(BlobCorrupt, match="is lost; publishing its adapter again heals it"):
            await call_in(None, registry.adapter_files, damaged)
        source = StalledSource(registry)
        source.failure = RemoteUnavailable("oci://x", "it is down")
        source.may_go_on.set()
        registry.heal_from(source)
        with pytest.raises(RemoteUnavailable):
            await call_in(None, registry.adapter_files, damaged)
        assert source.fetches == 1

    asyncio.run(asyncio.wait_for(run(), LIMIT))
