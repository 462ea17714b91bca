"""Tags: moved by compare-and-set, removed, rolled back, and what became of them."""

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound, TagMoved
from hotshoe.registry.reference import check_name, check_tag
from hotshoe.registry.store.commits import Commits, move_tags
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_rows import AdapterRow
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.tag_log import LoggedMove, Move, TagLog
from hotshoe.registry.store.tag_policy import TagPolicy


class Tags:
    """The tags of a store; its methods are `Registry`'s."""

    def __init__(self, *, locks: StoreLocks, index: Index, commits: Commits, log: TagLog, policy: TagPolicy) -> None:
        self._locks = locks
        self._index = index
        self._commits = commits
        self._log = log
        self._policy = policy

    def move(self, name: str, tag: str, digest: str, expected: str | None) -> AdapterRow:
        """Points a tag at `digest` if it points at `expected` now."""
        check_name(name)
        check_tag(tag)
        check_digest(digest)

        def change(transaction: Transaction) -> list[Move]:
            if not transaction.has_adapter(name, digest):
                raise AdapterNotFound(f"no adapter {name}@{digest}: a tag points at adapters of its own name")
            actual = transaction.tag_digest(name, tag)
            if actual != expected:
                raise TagMoved(f"{name}:{tag}", expected, actual)
            return move_tags(transaction, name=name, tags=[tag], digest=digest, policy=self._policy)

        with self._locks.publishing():
            self._commits.commit(change)
            row = self._index.by_digest(name, digest)
        assert row is not None, "nothing is collected while publishing"
        return row

    def remove(self, name: str, tag: str) -> None:
        """Removes a tag. Raises AdapterNotFound: there is none."""
        check_name(name)
        check_tag(tag)

        def change(transaction: Transaction) -> list[Move]:
            actual = transaction.tag_digest(name, tag)
            if actual is None:
                raise AdapterNotFound(f"no tag {name}:{tag}")
            transaction.remove_tag(name, tag)
            return [Move(name, tag, actual, None)]

        with self._locks.publishing():
            self._commits.commit(change)

    def roll_back(self, name: str, tag: str) -> tuple[AdapterRow, str | None]:
        """Points a tag where it pointed before its latest move; returns that and where it pointed until now."""
        history = self.history(name, check_tag(tag), limit=1)
        if not history:
            raise AdapterNotFound(f"no adapter {name}:{tag}")
        [(_, _, latest)] = history
        if latest.old is None:
            raise AdapterNotFound(f"{name}:{tag} has pointed at {latest.new} only: nothing to roll back")
        if self._index.by_digest(name, latest.old) is None:
            raise AdapterNotFound(f"{name}:{tag} pointed at {latest.old} before, which has been collected")
        return self.move(name, tag, latest.old, latest.new), latest.new

    def history(self, name: str, tag: str, *, limit: int) -> list[LoggedMove]:
        """The latest moves of a tag, or of all of a name's (""), the latest first."""
        check_name(name)
        if tag:
            check_tag(tag)
        moves = [logged for logged in self._log.replay(name=name) if logged.move.name == name]
        return [logged for logged in reversed(moves) if not tag or logged.move.tag == tag][:limit]
