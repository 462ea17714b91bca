"""Who comes in: each call's token, and each message against what its caller may do."""

import logging
from typing import Any

from hotshoe.server.errors import NotPermitted
from hotshoe.server.logs import log_event
from hotshoe.server.services.callers import Caller, current_caller
from hotshoe.server.services.permissions import NamesOf, demands_by_path
from hotshoe.server.services.rpc import Metadata
from hotshoe.server.services.tokens import TokenVerifier


class Admission:
    """Asks every call for a token, and lets it do what the token's scopes say.

    Args:
        names_of: the names that a digest is published under.
    """

    def __init__(self, verifier: TokenVerifier, names_of: NamesOf) -> None:
        self._verifier = verifier
        self._names_of = names_of
        self._demands = demands_by_path()

    def admit(self, metadata: Metadata) -> Caller:
        """Who calls. Raises Unauthenticated."""
        return self._verifier.caller(metadata)

    def check(self, path: str, message: Any) -> None:
        """Logs what changes something and may. Raises NotPermitted where the current caller lacks a scope."""
        caller = current_caller.get()
        assert caller is not None, "it was admitted"
        demands = list(self._demands[path](message, self._names_of))
        lacking = caller.lacks(demands)
        if lacking is not None:
            log_event(logging.WARNING, "not_permitted", subject=caller.subject, method=path, scope=str(lacking))
            everything = " of every name" if lacking.of_all else ""
            raise NotPermitted(f"{caller.subject}: the token lacks the scope {lacking}{everything}")
        for demand in demands:
            if demand.action == "admin" or (demand.action in ("publish", "tag") and demand.names):
                log_event(logging.INFO, "permitted", subject=caller.subject, method=path, scope=str(demand))
