"""index.json, what ordinary tools read, brought up to the index after each commit.

A small one is replaced before the commit is acknowledged. A large one takes a tenth of a second, so a thread replaces
it a moment later, once for all commits since. Until then tags.log, from the entry behind the one that index.json names,
has what it lacks, and a lost index is rebuilt from both.
"""

import logging
import sqlite3
import threading
import time

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_json import build_index, read_log_id
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.tag_log import TagLog

# What is built, written and synced in a few milliseconds.
SMALL_ENTRIES = 500
DELAY_SECONDS = 0.5
_IDLE_PER_BUSY = 9  # the thread leaves the interpreter to others for most of the time
_RETRY_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Export:
    """The export of one store."""

    def __init__(self, layout: Layout, *, locks: StoreLocks, index: Index, log: TagLog) -> None:
        self._layout = layout
        self._locks = locks
        self._index = index
        self._log = log
        self._is_due = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()

    def after_commit(self) -> None:
        """Replaces index.json, or sees to it. Under `StoreLocks.committing`, when tags.log has the commit."""
        if sum(self._index.counts()) <= SMALL_ENTRIES:
            self.now()
            return
        self._is_due.set()
        with self._mutex:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="index-export", daemon=True)
                self._thread.start()

    def now(self) -> None:
        """Makes index.json say what the index says, durably. Under `StoreLocks.committing`."""
        _, document = index_document(self._index, self._log)
        self._layout.confirm_index(document)

    def close(self) -> None:
        """Ends the thread, and does what it had yet to do.

        Raises:
            OSError, sqlite3.Error, StoreUnavailable: the disk refused; the next open of the store does it.
        """
        with self._mutex:
            self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self._is_due.is_set():
            with self._locks.publishing():
                self._later()

    def _run(self) -> None:
        pause = DELAY_SECONDS
        while not self._closing.wait(pause):
            pause = DELAY_SECONDS
            if not self._is_due.is_set():
                continue
            started = time.monotonic()
            try:
                with self._locks.publishing():
                    self._later()
            except (OSError, sqlite3.Error, StoreUnavailable) as error:
                logger.warning("index.json is behind, and is tried again: %s", error)
                self._is_due.set()
                pause = _RETRY_SECONDS
            else:
                pause = max(pause, _IDLE_PER_BUSY * (time.monotonic() - started))

    def _later(self) -> None:
        """Replaces index.json by what the index says now; the others commit meanwhile, but for the rename."""
        self._is_due.clear()
        self._index.check_identity()
        log_id, document = index_document(self._index, self._log)
        staged = self._layout.stage_file(document)
        try:
            with self._locks.committing():
                self._layout.check_sound()
                if self._exported_id() < log_id:  # else another process was faster
                    self._layout.put_in_place(staged, "index.json")
        finally:
            staged.unlink(missing_ok=True)

    def _exported_id(self) -> int:
        document = self._layout.read_index()
        return -1 if document is None else read_log_id(document)


def index_document(index: Index, log: TagLog) -> tuple[int, bytes]:
    """index.json as the index has it at one moment, and the id of the log's last entry that is in it."""
    # Before the snapshot: an index that knows of no entry was rebuilt from the log as it is now.
    logged = log.last_id()
    snapshot = index.snapshot()
    log_id = snapshot.last_move or logged
    return log_id, build_index(snapshot.entries, snapshot.referrers, log_id=log_id)
