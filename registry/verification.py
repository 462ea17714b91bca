"""Whether stored adapters have the signatures that a policy asks for."""

from dataclasses import dataclass, field

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, SignaturesMissing
from hotshoe.registry.referrer import Referrer
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing.bundle import BUNDLE_TYPE, MAX_BUNDLE_BYTES
from hotshoe.registry.signing.errors import InvalidBundle
from hotshoe.registry.signing.policy import Mode, Policy, PolicyFile, Rule
from hotshoe.registry.signing.verdict import Verdict, signer, sum_up

_MAX_KNOWN = 1 << 16


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found out under one policy."""

    policy: Policy
    met: dict[tuple[str, str], Verdict] = field(default_factory=dict)  # by name and digest
    signers: dict[tuple[Rule, str, str], str | InvalidBundle] = field(default_factory=dict)  # rule, subject, bundle

    @property
    def are_too_many(self) -> bool:
        return len(self.met) + len(self.signers) > _MAX_KNOWN


class Verifier:
    """Holds a registry's adapters against a policy. Any thread.

    That an adapter is signed is remembered until the policy changes: signatures are added, and never taken away. That
    one is not, is looked at again each time, but no signature is computed twice.
    """

    def __init__(self, registry: Registry, policy: PolicyFile) -> None:
        self._registry = registry
        self._policy = policy
        self._findings = _Findings(policy.current())

    def check(self, name: str, digest: str) -> Verdict:
        """The verdict on an adapter that may be served under `name`.

        Raises:
            SignaturesMissing: the policy requires signatures that are not there.
            RegistryError: the registry cannot be read.
        """
        verdict = self.verdict(name, digest)
        if verdict.rule.mode is Mode.REQUIRE and not verdict.is_met:
            raise SignaturesMissing(verdict.problem)
        return verdict

    def verdict(self, name: str, digest: str) -> Verdict:
        """What the policy says of an adapter under `name`. Raises RegistryError: the registry cannot be read."""
        findings = self._current()
        if (known := findings.met.get((name, digest))) is not None:
            return known
        rule = findings.policy.rule_for(name)
        referrers = [] if rule.mode is Mode.OFF else self._registry.referrers(digest, BUNDLE_TYPE)
        signers = [self._signer(findings, rule, referrer) for referrer in referrers]
        verdict = sum_up(rule, name=name, digest=digest, signers=signers)
        if verdict.is_met:
            findings.met[name, digest] = verdict
        return verdict

    def _current(self) -> _Findings:
        """What is known under the policy as it is now: nothing, where it has just changed."""
        findings, policy = self._findings, self._policy.current()
        if findings.policy is not policy or findings.are_too_many:
            findings = self._findings = _Findings(policy)
        return findings

    def _signer(self, findings: _Findings, rule: Rule, referrer: Referrer) -> str | InvalidBundle:
        key = (rule, referrer.subject, referrer.document.digest)
        if key not in findings.signers:
            try:
                bundle = self._read(referrer)
            except (AdapterNotFound, BlobCorrupt) as error:  # not for ever: attaching it again heals it
                return InvalidBundle(str(error))
            findings.signers[key] = signer(findings.policy, rule, referrer.subject, bundle)
        return findings.signers[key]

    def _read(self, referrer: Referrer) -> bytes:
        with self._registry.read_blob(referrer.document.digest) as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
