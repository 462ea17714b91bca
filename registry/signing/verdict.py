"""What a policy says of one adapter's signatures."""

from collections.abc import Iterable
from dataclasses import dataclass

from hotshoe.registry.signing.bundle import verify
from hotshoe.registry.signing.errors import InvalidBundle
from hotshoe.registry.signing.policy import Mode, Policy, Rule


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose signatures count for an adapter, and why others do not."""

    name: str
    digest: str
    rule: Rule
    key_ids: tuple[str, ...]  # different keys, each with a signature that counts
    refused: tuple[str, ...]  # why, of each signature that does not

    @property
    def is_met(self) -> bool:
        return len(self.key_ids) >= self.rule.threshold or self.rule.mode is Mode.OFF

    @property
    def problem(self) -> str:
        """Name, rule and what is missing, in one line; empty if nothing is."""
        if self.is_met:
            return ""
        return f'{self.name}@{self.digest}: the policy\'s rule for "{self.rule.names}" asks for {self.missing}'

    @property
    def missing(self) -> str:
        """What the rule asks for, and what is there of it."""
        have = f"{len(self.key_ids)} there ({', '.join(self.key_ids)})" if self.key_ids else "none there"
        text = f"signatures by {self.rule.threshold} of the keys {', '.join(self.rule.key_ids)}; {have}"
        return text + "".join(f"; one does not count: {why}" for why in self.refused[:3])


def judge(policy: Policy, *, name: str, digest: str, bundles: Iterable[bytes]) -> Verdict:
    """Holds an adapter's bundles against the rule for its name."""
    rule = policy.rule_for(name)
    return sum_up(rule, name=name, digest=digest, signers=[signer(policy, rule, digest, one) for one in bundles])


def signer(policy: Policy, rule: Rule, digest: str, bundle: bytes) -> str | InvalidBundle:
    """The id of the key that signs `digest` in a bundle, if it counts for the rule; else why it does not."""
    try:
        key_id = verify(bundle, digest, policy.keys)
    except InvalidBundle as error:
        return error
    if key_id in policy.revoked:
        return InvalidBundle(f"its key {key_id} is revoked")
    if key_id not in rule.key_ids:
        return InvalidBundle(f"its key {key_id} is not one of the rule's")
    return key_id


def sum_up(rule: Rule, *, name: str, digest: str, signers: Iterable[str | InvalidBundle]) -> Verdict:
    """The verdict on what `signer` said of each bundle. A key that signs twice counts once."""
    key_ids: list[str] = []
    refused: list[str] = []
    for one in signers:
        (refused if isinstance(one, InvalidBundle) else key_ids).append(str(one))
    return Verdict(name, digest, rule, tuple(dict.fromkeys(key_ids)), tuple(refused))
