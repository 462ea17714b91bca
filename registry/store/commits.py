"""Commits: a transaction of the index, then its log, both on the disk, and its export."""

import sqlite3
from collections.abc import Callable, Sequence

from hotshoe.registry.store.export import Export
from hotshoe.registry.store.index import Index, is_io_error
from hotshoe.registry.store.index_rows import ReferrerRow
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.tag_log import Move, TagLog, log_line
from hotshoe.registry.store.tag_policy import FIXED_VERSIONS, TagPolicy


class Commits:
    """The one way to change what a store's names mean."""

    def __init__(self, layout: Layout, *, locks: StoreLocks, index: Index, log: TagLog, export: Export) -> None:
        self._layout = layout
        self._export = export
        self._locks = locks
        self._index = index
        self._log = log

    def commit(self, change: Callable[[Transaction], Sequence[Move]]) -> None:
        """Runs `change` in a transaction, then brings tags.log up to it, durably, and index.json now or soon.

        Call it under `StoreLocks.publishing` or `collecting`. If `change` raises, nothing happened.

        Raises:
            StoreUnavailable: an earlier sync failed, or the database was replaced.
            OSError, sqlite3.Error: the disk refused. The change may have been made; nothing is acknowledged, and
                repeating it, or opening the store again, completes it.
        """
        with self._locks.committing():
            self._layout.check_sound()
            self._index.check_identity()
            logged = self._log.last_id()
            try:
                with self._index.transaction() as transaction:
                    events: list[Move | ReferrerRow] = [*change(transaction), *transaction.attached]
                    if events:
                        transaction.forget_moves(logged)
                    first = transaction.next_move(logged)
                    for place, event in enumerate(events):
                        line = log_line(first + place, event, more=len(events) - 1 - place)
                        transaction.add_move(first + place, line)
            except sqlite3.Error as error:
                if is_io_error(error):
                    self._layout.fail(f"the index could not be written ({error})")
                raise
            self._log.append(self._index.moves(0))
            # Even with nothing to do: an earlier commit may have died before its export.
            self._export.after_commit()

    def commit_and_export(self, change: Callable[[Transaction], Sequence[Move]]) -> None:
        """As `commit`; index.json, too, has it when this returns."""
        self.commit(change)
        with self._locks.committing():
            self._export.now()


def move_tags(
    transaction: Transaction, *, name: str, tags: Sequence[str], digest: str, policy: TagPolicy = FIXED_VERSIONS
) -> list[Move]:
    """Points every tag at `digest`, wherever it pointed; returns the moves that were needed.

    Raises:
        TagImmutable: the policy lets one of them not move.
    """
    moves = []
    for tag in tags:
        old = transaction.tag_digest(name, tag)
        if old != digest:
            policy.check(name, tag, old, digest)
            transaction.set_tag(name, tag, digest)
            moves.append(Move(name, tag, old, digest))
    return moves
