import hashlib
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hotshoe.registry.stream_hash import StreamHash, begin_writing


@given(st.lists(st.sampled_from([0, 1, 1000, 128 << 10, 200_001, 1 << 20]), max_size=6))
def test_chunks_of_any_size_are_hashed_in_their_order(sizes: list[int]) -> None:
    hashing, expected = StreamHash(), hashlib.sha256()
    for number, size in enumerate(sizes):
        chunk = bytes([number]) * size
        hashing.update(memoryview(chunk) if number % 2 else chunk)
        expected.update(chunk)
        if number == 2:
            assert hashing.hexdigest() == expected.hexdigest()
    assert hashing.hexdigest() == expected.hexdigest()


def test_a_forked_child_hashes_with_threads_of_its_own() -> None:
    chunk = bytes(1 << 20)
    StreamHash().update(chunk)
    child = os.fork()
    if not child:
        hashing = StreamHash()
        hashing.update(chunk)
        os._exit(0 if hashing.hexdigest() == hashlib.sha256(chunk).hexdigest() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_writing_can_begin_before_the_sync_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        begin_writing(file.fileno(), 0, 100_000)
        file.write(b"y")
    begin_writing(999_999, 0, 1)  # what it cannot do, it leaves
    assert path.read_bytes() == b"x" * 100_000 + b"y"
