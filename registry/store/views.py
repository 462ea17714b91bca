"""Views: an adapter as a directory of hard links, for those who read directories, such as PEFT and vLLM.

What has a view is not collected, and a file that is open or linked outlives its blob. The links are the blobs
themselves: read-only, and not to be written to.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.locks import StoreLocks

MAX_FILE_NAME_LENGTH = 200


class Views:
    """The views of one store, each named by the digest of its adapter."""

    def __init__(self, layout: Layout, locks: StoreLocks) -> None:
        self._layout = layout
        self._locks = locks

    def path(self, digest: str) -> Path:
        """Where an adapter's view is, or would be."""
        return self._layout.views / digest_hex(digest)

    def make(self, digest: str, files: Mapping[str, Path]) -> Path:
        """Makes a view of verified files, whole and durable, or puts right the one that is there.

        Call it under `StoreLocks.publishing`.

        Raises:
            InvalidReference: a file's name could lead out of the directory.
        """
        view = self.path(digest)
        for name in files:
            check_file_name(name)
        with self._locks.committing():  # one at a time
            if not _is_whole(view, files):
                self._layout.check_sound()
                self._put_in_place(view, files)
        return view

    def remove(self, digest: str) -> bool:
        """Removes a view; whether there was one."""
        with self._locks.publishing(), self._locks.committing():
            return self._set_aside(self.path(digest))

    def _put_in_place(self, view: Path, files: Mapping[str, Path]) -> None:
        staged = self._layout.stage()
        staged.mkdir(mode=0o755)
        try:
            for name, blob in files.items():
                os.link(blob, staged / name, follow_symlinks=False)
            self._layout.sync_directory(staged)
            self._set_aside(view)
            os.rename(staged, view)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._layout.sync_directory(self._layout.views)

    def _set_aside(self, view: Path) -> bool:
        aside = self._layout.stage()
        try:
            os.rename(view, aside)
        except FileNotFoundError:
            return False
        self._layout.sync_directory(self._layout.views)
        shutil.rmtree(aside, ignore_errors=True)  # what is no directory, or cannot go, does so at the next open
        return True


def check_file_name(name: str) -> str:
    """Returns `name`.

    Raises:
        InvalidReference: it is not the plain name of one visible file.
    """
    plain = name.isprintable() and not set(name) & {"/", "\\"} and not name.startswith(".")
    if not (plain and 0 < len(name.encode(errors="replace")) <= MAX_FILE_NAME_LENGTH):
        raise InvalidReference(
            f"file name {name[:80]!r}: expected a plain name, without '/' and not beginning with '.'",
            field="file_name",
        )
    return name


def _is_whole(view: Path, files: Mapping[str, Path]) -> bool:
    """Whether a view has just these files, and each is its blob."""
    try:
        if view.is_symlink() or sorted(os.listdir(view)) != sorted(files):
            return False
        return all(os.path.samestat(os.lstat(view / name), os.lstat(blob)) for name, blob in files.items())
    except (FileNotFoundError, NotADirectoryError):
        return False
