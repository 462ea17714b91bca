"""Byte progress on standard error, when that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Tells the bar: what is being done, bytes done, bytes in all.
Update = Callable[[str, int, int], None]


@contextmanager
def byte_progress() -> Iterator[Update]:
    """Gives a function that moves a progress bar; it does nothing when nobody would see the bar."""
    if not sys.stderr.isatty():
        yield lambda what, completed, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, int] = {}

    def update(what: str, completed: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total or None)
        bar.update(tasks[what], completed=completed, total=total or None)  # type: ignore[arg-type]

    with bar:
        yield update
