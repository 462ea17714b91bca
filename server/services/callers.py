"""Who calls, and what they may do: what a token says, in our words."""

import fnmatch
import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

ACTIONS = ("generate", "read", "publish", "tag", "admin")
# What may be kept to names. Blobs have none, so whoever reads or administers does so with all there is.
NAMED_ACTIONS = ("generate", "publish", "tag")
_PATTERN = re.compile(r"[a-z0-9._/*?-]{1,200}")


@dataclass(frozen=True, slots=True)
class Scope:
    """One thing that a caller may do: with every adapter, or with those of some names."""

    action: str
    names: str = "*"  # a pattern, in which * matches "/", too

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Reads "publish" or "publish:team/*". Raises ValueError."""
        action, colon, names = text.partition(":")
        if action not in ACTIONS:
            raise ValueError(f"scope {text!r}: expected one of {', '.join(ACTIONS)}")
        if colon and (action not in NAMED_ACTIONS or not _PATTERN.fullmatch(names)):
            raise ValueError(
                f"scope {text!r}: expected {' or '.join(NAMED_ACTIONS)} before a colon, and behind it a pattern of "
                "adapters' names, of their characters, * and ?"
            )
        return cls(action, names if colon else "*")

    def __str__(self) -> str:
        return self.action if self.names == "*" else f"{self.action}:{self.names}"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call needs: an action, with an adapter that has one of `names`; () where no adapter is named."""

    action: str
    names: tuple[str, ...] = ()
    of_all: bool = False  # it reaches adapters that it does not name: only a scope of every name will do

    def __str__(self) -> str:
        return f"{self.action}:{self.names[0]}" if self.names else self.action


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token names."""

    subject: str
    tenant: str
    scopes: tuple[Scope, ...]

    def lacks(self, demands: Iterable[Demand]) -> Demand | None:
        """The first of `demands` that no scope meets; None if all are met."""
        return next((demand for demand in demands if not self._meets(demand)), None)

    def _meets(self, demand: Demand) -> bool:
        patterns = [scope.names for scope in self.scopes if scope.action == demand.action]
        if demand.of_all:
            return "*" in patterns
        if not demand.names:
            return bool(patterns)
        return any(fnmatch.fnmatchcase(name, pattern) for name in demand.names for pattern in patterns)


# Of the RPC whose handler runs; None where the server asks nobody who they are.
current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
