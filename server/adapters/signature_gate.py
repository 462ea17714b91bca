"""The registry, as far as its policy lets adapters be served: every load and every request goes through here.

What only stores, lists or copies adapters goes to the registry itself.
"""

import logging
from pathlib import Path

from hotshoe.registry.errors import SignaturesMissing
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.verification import Verifier
from hotshoe.server.logs import log_event


class SignatureGate:
    """Resolves and reads adapters that may be served. Any thread.

    Args:
        verifier: None where no policy asks for signatures.
    """

    def __init__(self, registry: Registry, verifier: Verifier | None) -> None:
        self._registry = registry
        self._verifier = verifier
        self._warned: set[str] = set()

    def resolve(self, reference: str) -> AdapterRecord:
        """As `Registry.resolve`, for a request.

        Raises:
            SignaturesMissing: the policy does not let it be served under that name.
        """
        record = self._registry.resolve(reference)
        self._check(record.name, record.digest)
        return record

    def adapter_record(self, digest: str) -> AdapterRecord:
        """As `Registry.adapter_record`, for a load: whoever asked for it had one of its names, we do not know which.

        Raises:
            SignaturesMissing: the policy lets it be served under none of them.
        """
        record = self._registry.adapter_record(digest)
        if self._verifier is None:
            return record
        refusal: SignaturesMissing | None = None
        for name in self._registry.adapter_names(digest):
            try:
                self._verifier.check(name, digest)
                return record
            except SignaturesMissing as error:
                refusal = error
        assert refusal is not None, "it has a record, so it has a name"
        raise refusal

    def adapter_files(self, digest: str) -> dict[str, Path]:
        """As `Registry.adapter_files`."""
        return self._registry.adapter_files(digest)

    def _check(self, name: str, digest: str) -> None:
        if self._verifier is None:
            return
        verdict = self._verifier.check(name, digest)
        if not verdict.is_met and digest not in self._warned:
            self._warned.add(digest)
            log_event(logging.WARNING, "unsigned", name=name, digest=digest, reason=verdict.problem)
