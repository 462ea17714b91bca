"""Quantized bases on disk: named by their files' bytes, whole or absent."""

import hashlib
import os
from pathlib import Path

import pytest
import rfc8785

from hotshoe.server.model.base_cache import BaseCache


def test_a_base_digest_is_that_of_its_files_in_canonical_json(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_bytes(b"{}")
    entries = [
        ["config.json", 2, hashlib.sha256(b"{}").hexdigest()],
        ["model.safetensors", 7, hashlib.sha256(b"weights").hexdigest()],
    ]
    expected = f"sha256:{hashlib.sha256(rfc8785.dumps(entries)).hexdigest()}"
    cache = BaseCache(tmp_path / "cache")
    files = [model / "model.safetensors", model / "config.json"]
    assert cache.base_digest(model, files) == cache.base_digest(model, reversed(files)) == expected


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = path.stat()
    BaseCache(tmp_path / "cache").file_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing tells it from the file that was hashed
    assert BaseCache(tmp_path / "cache").file_digest(path) == hashlib.sha256(b"one").hexdigest()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert BaseCache(tmp_path / "cache").file_digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_torn_memory_of_digests_is_forgotten(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path / "cache")
    (tmp_path / "cache" / "digests.json").write_text("{")
    (tmp_path / "weights").write_bytes(b"x")
    assert cache.file_digest(tmp_path / "weights") == hashlib.sha256(b"x").hexdigest()


def test_a_base_is_kept_whole(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path)
    assert cache.find("sha256:ab") is None
    directory = cache.add("sha256:ab", lambda path: (path / "config.json").write_text("{}") and None)
    assert cache.find("sha256:ab") == directory
    assert (directory / "config.json").read_text() == "{}"


def test_a_base_whose_writing_failed_leaves_nothing(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise RuntimeError("torn")

    cache = BaseCache(tmp_path)
    with pytest.raises(RuntimeError, match="torn"):
        cache.add("sha256:ab", write)
    assert cache.find("sha256:ab") is None
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_takes_what_the_first_wrote(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path)

    def write(directory: Path) -> None:
        (directory / "who").write_text("second")
        cache.add("sha256:ab", lambda path: (path / "who").write_text("first") and None)

    assert (cache.add("sha256:ab", write) / "who").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path)
    abandoned, young = tmp_path / ".tmp-abandoned", tmp_path / ".tmp-young"
    for directory in (abandoned, young):
        directory.mkdir()
        (directory / "half").write_text("x")

    def write(directory: Path) -> None:
        (directory / "whole").write_text("x")
        for path in (abandoned, directory):
            os.utime(path, (0, 0))
        cache.add("sha256:cd", lambda path: (path / "other").write_text("y") and None)
        assert (directory / "whole").exists() and not abandoned.exists()

    cache.add("sha256:ab", write)
    assert young.exists()
