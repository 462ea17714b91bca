"""Policies: what is read, what is refused with its field, and what a change on disk does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signing_policies import rule, write_policy

from hotshoe.registry.signing import policy as policies
from hotshoe.registry.signing.bundle import sign
from hotshoe.registry.signing.errors import InvalidPolicy
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import Mode, Policy, PolicyFile
from hotshoe.registry.signing.verdict import judge

DIGEST = f"sha256:{'a1' * 32}"
FIRST, SECOND, STRANGER = PrivateKey.new(), PrivateKey.new(), PrivateKey.new()
ID, SECOND_ID = FIRST.public.key_id, SECOND.public.key_id
LAST = rule("*", "off")


def read(directory: Path, text: str, *keys: PrivateKey) -> Policy:
    return Policy.read(write_policy(directory, text, *keys))


def judged(policy: Policy, *signers: PrivateKey, name: str = "prod/a") -> tuple[bool, tuple[str, ...]]:
    verdict = judge(policy, name=name, digest=DIGEST, bundles=[sign(DIGEST, signer) for signer in signers])
    return verdict.is_met, verdict.key_ids


def test_the_first_rule_that_matches_a_name_is_its_rule(tmp_path: Path) -> None:
    text = rule("prod/secret-?", "require", threshold=2) + rule("prod/*", "warn", keys=json.dumps([ID])) + LAST
    policy = read(tmp_path, text, FIRST, SECOND)
    named = {name: policy.rule_for(name) for name in ("prod/secret-1", "prod/secret-12", "prod/a/b", "dev/prod/a")}
    assert [one.mode for one in named.values()] == [Mode.REQUIRE, Mode.WARN, Mode.WARN, Mode.OFF]
    assert named["prod/secret-1"].threshold == 2 and named["prod/secret-1"].key_ids == tuple(sorted([ID, SECOND_ID]))
    assert named["prod/a/b"].key_ids == (ID,)


def test_enough_different_keys_must_sign(tmp_path: Path) -> None:
    policy = read(tmp_path, rule("*", "require", threshold=2), FIRST, SECOND)
    assert judged(policy) == (False, ())
    assert judged(policy, FIRST, FIRST) == (False, (ID,))  # one key that signs twice is one
    assert judged(policy, FIRST, STRANGER) == (False, (ID,))
    assert judged(policy, FIRST, SECOND, STRANGER) == (True, (ID, SECOND_ID))


def test_a_missing_signature_is_told_with_all_that_is_needed(tmp_path: Path) -> None:
    text = f'revoked = ["{SECOND_ID}"]\n' + rule("prod/*", "require", threshold=2) + LAST
    policy = read(tmp_path, text, FIRST, SECOND)
    bundles = [sign(DIGEST, FIRST), sign(DIGEST, SECOND), sign(DIGEST, STRANGER)]
    verdict = judge(policy, name="prod/a", digest=DIGEST, bundles=bundles)
    for part in (
        f"prod/a@{DIGEST}",
        '"prod/*"',
        "2 of the keys",
        ID,
        f"its key {SECOND_ID} is revoked",
        "no known key",
    ):
        assert part in verdict.problem
    assert judge(policy, name="dev/a", digest=DIGEST, bundles=[]).problem == ""


def test_a_key_counts_only_for_the_rules_that_name_it(tmp_path: Path) -> None:
    policy = read(tmp_path, rule("prod/*", "require", keys=json.dumps([ID])) + rule("*", "require"), FIRST, SECOND)
    assert judged(policy, SECOND) == (False, ())
    assert judged(policy, SECOND, name="dev/a") == (True, (SECOND_ID,))


def test_keys_are_rotated_and_revoked(tmp_path: Path) -> None:
    require = rule("*", "require")
    both = read(tmp_path, require, FIRST, SECOND)
    assert judged(both, FIRST)[0] and judged(both, SECOND)[0]
    revoked = read(tmp_path, f'revoked = ["{ID}"]\n{require}', FIRST, SECOND)
    assert not judged(revoked, FIRST)[0] and judged(revoked, SECOND)[0]
    # A list of revoked keys outlives the keys' files; and every key may be revoked: then nothing is signed.
    assert not judged(read(tmp_path, f'revoked = ["{ID}"]\n{require}', SECOND), FIRST)[0]
    nobody = read(tmp_path, f'revoked = ["{ID}", "{SECOND_ID}"]\n{rule("*", "require", threshold=2)}', FIRST, SECOND)
    assert judged(nobody, FIRST, SECOND) == (False, ())


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("rule: the last", ""),
        ("rule: the last", rule("prod/*", "require")),
        ("rule: expected tables", "rule = 1"),
        (r"rule\[0\]: expected a table", "rule = [1]"),
        (r"rule\[0\]\.names", rule("PROD/*", "require") + LAST),
        (r"rule\[0\]\.names", "[[rule]]\nmode = 'off'\n" + LAST),
        (r"rule\[0\]\.names", rule("[a-z]*", "require") + LAST),
        (r"rule\[0\]\.mode", rule("*", "enforce")),
        (r"rule\[0\]\.mode", "[[rule]]\nnames = '*'\n"),
        (r"rule\[0\]\.threshold", rule("*", "require", threshold=2)),
        (r"rule\[0\]\.threshold", rule("*", "require", threshold=0)),
        (r"rule\[0\]\.threshold", rule("*", "warn", threshold="true")),
        (r"rule\[0\]\.threshold", rule("*", "require", threshold="1.0")),
        (r"rule\[0\]\.threshold", rule("*", "require", keys=json.dumps([ID, ID]), threshold=2)),
        (r"rule\[0\]\.keys", rule("*", "require", keys=json.dumps([SECOND_ID]))),
        (r"rule\[0\]\.keys", rule("*", "require", keys='"x"')),
        (r"rule\[0\]\.level", rule("*", "require", level=1)),
        ("revoked", "revoked = ['0123']\n" + LAST),
        ("revoked", "revoked = [1]\n" + LAST),
        ("revoke: unknown", f"revoke = ['{ID}']\n" + LAST),
        ("keys: expected", "keys = 1\n" + LAST),
        ("policy.toml", "rule = "),
        ("at most", "#" * (1 << 20) + "\n" + LAST),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_field(tmp_path: Path, field: str, text: str) -> None:
    path = write_policy(tmp_path, text, FIRST)
    with pytest.raises(InvalidPolicy, match=field) as caught:
        Policy.read(path)
    assert str(path) in str(caught.value)


def test_a_rule_that_requires_has_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match=r"rule\[0\]\.keys: expected one key"):
        read(tmp_path, rule("*", "require"))
    assert read(tmp_path, rule("*", "off")).keys == {}
    with pytest.raises(InvalidPolicy, match="policy.toml"):
        Policy.read(tmp_path / "nowhere" / "policy.toml")
    with pytest.raises(InvalidPolicy, match=r"1\.pem"):
        (tmp_path / "keys.d" / "1.pem").write_text("nothing")
        Policy.read(tmp_path / "policy.toml")


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sampled_from(["names", "mode", "keys", "threshold"]), VALUES)
def test_a_field_of_any_type_is_read_or_refused(tmp_path: Path, field: str, value: Any) -> None:
    fields = {"names": '"*"', "mode": '"require"', field: json.dumps(value)}
    text = "[[rule]]\n" + "\n".join(f"{key} = {one}" for key, one in fields.items())
    try:
        assert read(tmp_path, text, FIRST).rules[-1].names == "*"
    except InvalidPolicy as error:
        str(error).encode()


def test_a_running_policy_follows_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(policies, "RELOAD_SECONDS", 0.0)
    path = write_policy(tmp_path, rule("*", "require"), FIRST)
    file = PolicyFile(path)
    policy = file.current()
    assert file.current() is policy and judged(policy, FIRST)[0] and not judged(policy, SECOND)[0]
    (tmp_path / "keys.d" / "new.pem").write_bytes(SECOND.public.pem())
    assert judged(file.current(), FIRST)[0] and judged(file.current(), SECOND)[0]
    path.write_text(f'revoked = ["{ID}"]\n' + rule("*", "require"))
    assert not judged(file.current(), FIRST)[0] and judged(file.current(), SECOND)[0]
    path.write_text("revoked = [")
    assert not judged(file.current(), FIRST)[0]  # as before
    assert "the policy is not changed" in caplog.text
    path.unlink()
    assert not judged(file.current(), FIRST)[0] and judged(file.current(), SECOND)[0]
    path.write_text(rule("*", "off"))
    assert judged(file.current()) == (True, ())


def test_a_running_policy_is_not_read_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "RELOAD_SECONDS", 3600.0)
    path = write_policy(tmp_path, rule("*", "require"), FIRST)
    file = PolicyFile(path)
    before = file.current()
    path.write_text(LAST)
    assert file.current() is before


def test_a_policy_of_keys_asks_for_them(tmp_path: Path) -> None:
    keys = {ID: FIRST.public, SECOND_ID: SECOND.public}
    assert judged(Policy.of_keys(keys), SECOND)[0] and not judged(Policy.of_keys(keys, threshold=2), SECOND)[0]
    for threshold in (0, 3):
        with pytest.raises(InvalidPolicy, match="threshold"):
            Policy.of_keys(keys, threshold=threshold)
