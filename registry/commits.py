"""Commits: a transaction of the index, then its log and its export; done when both are on the disk."""

import sqlite3
from collections.abc import Callable, Sequence

from hotshoe.registry.index import Index, Transaction, is_io_error
from hotshoe.registry.layout import Layout
from hotshoe.registry.locks import StoreLocks
from hotshoe.registry.manifest import build_index
from hotshoe.registry.tag_log import Move, TagLog, log_line
from hotshoe.registry.tag_policy import FIXED_VERSIONS, TagPolicy


class Commits:
    """The one way to change what a store's names mean."""

    def __init__(self, layout: Layout, *, locks: StoreLocks, index: Index, log: TagLog) -> None:
        self._layout = layout
        self._locks = locks
        self._index = index
        self._log = log

    def commit(self, change: Callable[[Transaction], Sequence[Move]]) -> None:
        """Runs `change` in a transaction, then brings tags.log and index.json up to it, durably.

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
                    moves = change(transaction)
                    if moves:
                        transaction.forget_moves(logged)
                    for move_id, move in enumerate(moves, transaction.next_move(logged)):
                        transaction.add_move(move_id, log_line(move_id, move))
            except sqlite3.Error as error:
                if is_io_error(error):
                    self._layout.fail(f"the index could not be written ({error})")
                raise
            self._log.append(self._index.moves(0))
            index_json = build_index(self._index.entries(), self._index.referrers())
            if moves:
                self._layout.export_index(index_json)
            else:  # nothing to do, but an earlier commit may have died before its export
                self._layout.confirm_index(index_json)


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
