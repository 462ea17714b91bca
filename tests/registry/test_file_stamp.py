"""A file that is followed is another one once it is written, replaced or gone; never because it was looked at."""

import os
from pathlib import Path

from hotshoe.registry.file_stamp import file_stamp


def test_a_stamp_changes_with_what_a_file_is_and_no_sooner(tmp_path: Path) -> None:
    path, beside = tmp_path / "followed", tmp_path / "beside"
    assert file_stamp(path) == ()
    path.write_text("one")
    written = file_stamp(path)
    path.read_text()
    assert file_stamp(path) == written != ()
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    touched = file_stamp(path)
    assert touched != written
    beside.write_text("two")
    os.utime(beside, ns=(0, path.stat().st_mtime_ns))
    beside.replace(path)
    assert file_stamp(path) != touched  # same length, same time, another file
    path.unlink()
    assert file_stamp(path) == ()


def test_a_link_that_is_pointed_elsewhere_is_another_file(tmp_path: Path) -> None:
    """As an orchestrator changes what it mounts."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(0, 10**18))
    link, beside = tmp_path / "token", tmp_path / "token.new"
    link.symlink_to(tmp_path / "old")
    old = file_stamp(link)
    beside.symlink_to(tmp_path / "new")
    beside.replace(link)
    assert file_stamp(link) != old
