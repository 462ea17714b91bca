"""Disks that take no writes: a view of a directory, and a disk that was given up while it was used. Root's own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only_view(directory: Path, view: Path) -> Iterator[Path]:
    """The same files at another path, where nobody can write."""
    view.mkdir()
    _mount("--bind", str(directory), str(view))
    try:
        _mount("-o", "remount,bind,ro", str(view))
        yield view
    finally:
        _unmount(view)


class FailingDisk:
    """A small ext4 disk in a file."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed (apt: e2fsprogs)")
        self.path = directory / "disk"
        self._image = directory / "image"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True, capture_output=True, timeout=60)
        self.mount()

    def mount(self) -> None:
        _mount("-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        _unmount(self.path)

    def give_up(self) -> None:
        """As the kernel does on an error of the disk: from now on it is read-only, for open files too."""
        _mount("-o", "remount,abort", str(self.path))
        with pytest.raises(OSError, match="Read-only"):
            (self.path / "written").touch()


def _mount(*arguments: str) -> None:
    if subprocess.run(["mount", *arguments], capture_output=True, timeout=60).returncode:
        pytest.skip("this user may not mount a file system")


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=60)
