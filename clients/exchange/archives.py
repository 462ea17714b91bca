"""Tar archives of which every byte is decided: USTAR, no times, no owners, in the order given."""

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_archive(output: Any, members: Iterable[tuple[str, Path]]) -> None:
    """Writes files, and the directories that their names are in, to what has `write`; equal files, equal bytes."""
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        made: set[str] = set()
        for name, path in members:
            for parent in [str(one) for one in reversed(Path(name).parents) if str(one) != "."]:
                if parent not in made:
                    made.add(parent)
                    archive.addfile(_member(parent, kind=tarfile.DIRTYPE, mode=0o755))
            with path.open("rb") as file:
                archive.addfile(_member(name, size=path.stat().st_size), file)


def _member(name: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # no time, no owner
    member.size, member.type, member.mode = size, kind, mode
    return member
