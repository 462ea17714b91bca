"""Which adapters must be signed, by how many of which keys: a TOML file, and a directory of public keys beside it.

keys = "keys.d"               # where *.pem are, beside this file; what it is if nothing is said
revoked = ["sha256:…"]        # key ids whose signatures count no more

[[rule]]                      # the first whose glob matches a name is that name's; * and ? match "/", too
names = "prod/*"
mode = "require"              # not served until it is signed; warn: only said so; off: not looked at
keys = ["sha256:…"]           # whose signatures count; all of keys.d if nothing is said
threshold = 2                 # by how many different keys; 1 if nothing is said

[[rule]]
names = "*"                   # the last rule must be for every other name
mode = "warn"
"""

import enum
import fnmatch
import logging
import re
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotshoe.registry.file_stamp import file_stamp
from hotshoe.registry.signing.errors import InvalidPolicy
from hotshoe.registry.signing.keys import PublicKey, read_public_keys

MAX_POLICY_BYTES = 1 << 20
MAX_KEYS = 256
RELOAD_SECONDS = 1.0
_GLOB = re.compile(r"[a-z0-9._/*?-]{1,200}")
_KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class Mode(enum.StrEnum):
    """What happens to an adapter with too few signatures."""

    OFF = "off"  # nothing: nobody looks
    WARN = "warn"  # it is served, and a log line says so
    REQUIRE = "require"  # it is stored, and not served


@dataclass(frozen=True, slots=True)
class Rule:
    """What the policy asks of the names that a glob matches."""

    names: str
    mode: Mode
    threshold: int
    key_ids: tuple[str, ...]  # whose signatures count, unless they are revoked


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in order, and the keys that they name."""

    rules: tuple[Rule, ...]
    keys: Mapping[str, PublicKey] = field(repr=False)
    revoked: frozenset[str]
    key_directory: Path | None = None

    @classmethod
    def read(cls, path: Path) -> "Policy":
        """Reads a policy file and its keys.

        Raises:
            InvalidPolicy: it cannot be followed; the message names file and field.
        """
        try:
            with path.open("rb") as file:
                text = file.read(MAX_POLICY_BYTES + 1)
            if len(text) > MAX_POLICY_BYTES:
                raise InvalidPolicy(f"expected at most {MAX_POLICY_BYTES} bytes")
            return _policy(tomllib.loads(text.decode()), path.parent)
        except OSError as error:
            raise InvalidPolicy(f"policy {error.filename or path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidPolicy(f"policy {path}: {error}") from error

    @classmethod
    def of_keys(cls, keys: Mapping[str, PublicKey], *, threshold: int = 1) -> "Policy":
        """That every adapter be signed by `threshold` of `keys`. Raises InvalidPolicy."""
        _check_threshold("threshold", threshold, len(keys))
        rule = Rule("*", Mode.REQUIRE, threshold, tuple(sorted(keys)))
        return cls((rule,), keys, frozenset())

    def rule_for(self, name: str) -> Rule:
        """The first rule whose glob matches; the last matches every name."""
        return next(rule for rule in self.rules if fnmatch.fnmatchcase(name, rule.names))


class PolicyFile:
    """A policy that follows its file and its keys' directory: a change is seen within a second. Any thread.

    A change that cannot be read is logged, and what was there before holds.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidPolicy."""
        self._path = path
        self._lock = threading.Lock()
        self._policy = Policy.read(path)
        self._stamp: object = None  # not taken before the first look: a change meanwhile would be missed
        self._looked_at = -RELOAD_SECONDS

    def current(self) -> Policy:
        """The policy as its files are now, give or take a second; the same object until they change."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= RELOAD_SECONDS:
                self._looked_at = now
                self._look()
            return self._policy

    def _look(self) -> None:
        stamp = _stamp(self._path, self._policy.key_directory)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            policy = Policy.read(self._path)
        except InvalidPolicy as error:
            _log.error("the policy is not changed: %s", error)
            return
        if policy != self._policy:
            _log.warning("the policy has changed: %s", self._path)
            self._policy = policy


def _stamp(path: Path, key_directory: Path | None) -> list[object]:
    """What is another one once the policy's file or one of its keys has changed."""
    paths = [path, *sorted(key_directory.glob("*.pem"))] if key_directory else [path]
    return [(str(one), *file_stamp(one)) for one in paths]


def _policy(document: Mapping[str, Any], beside: Path) -> Policy:
    _check_fields("", document, {"keys", "revoked", "rule"})
    revoked = _key_ids("revoked", document.get("revoked", []))
    directory = beside / _typed("keys", document.get("keys", "keys.d"), str, "the path of a directory")
    paths = sorted(directory.glob("*.pem"))
    if len(paths) > MAX_KEYS:
        raise InvalidPolicy(f"keys: {len(paths)} files in {directory}; expected at most {MAX_KEYS}")
    keys = read_public_keys(paths)
    entries = _typed("rule", document.get("rule", []), list, "tables, as [[rule]] makes them")
    rules = tuple(_rule(f"rule[{index}]", entry, keys) for index, entry in enumerate(entries))
    if not rules or rules[-1].names != "*":
        raise InvalidPolicy('rule: the last must have names = "*", and say what holds for every other name')
    return Policy(rules, keys, frozenset(revoked), directory)


def _rule(field_name: str, entry: Any, keys: Mapping[str, PublicKey]) -> Rule:
    entry = _typed(field_name, entry, dict, "a table")
    _check_fields(f"{field_name}.", entry, {"names", "mode", "keys", "threshold"})
    names = _typed(f"{field_name}.names", entry.get("names"), str, "a glob of adapters' names")
    if not _GLOB.fullmatch(names):
        raise InvalidPolicy(f"{field_name}.names: expected characters of a name, * and ?, not {ascii(names)[:80]}")
    mode = entry.get("mode")
    if mode not in list(Mode):
        raise InvalidPolicy(f"{field_name}.mode: expected one of {', '.join(Mode)}, not {ascii(mode)[:80]}")
    key_ids = _key_ids(f"{field_name}.keys", entry.get("keys", sorted(keys)))
    if unknown := [key_id for key_id in key_ids if key_id not in keys]:
        raise InvalidPolicy(f"{field_name}.keys: no file of the keys' directory has the key {unknown[0]}")
    if not key_ids and mode != Mode.OFF:
        raise InvalidPolicy(f"{field_name}.keys: expected one key or more; there is none")
    threshold = entry.get("threshold", 1)
    _check_threshold(f"{field_name}.threshold", threshold, MAX_KEYS if mode == Mode.OFF else len(key_ids))
    return Rule(names, Mode(mode), threshold, key_ids)


def _check_threshold(field_name: str, threshold: Any, keys: int) -> None:
    """More than there are keys could never be met. Revoked ones are not looked at: that must not undo a revocation."""
    if type(threshold) is not int or not 1 <= threshold <= keys:
        problem = f"a number of different keys from 1 to the rule's {keys}, not {ascii(threshold)[:80]}"
        raise InvalidPolicy(f"{field_name}: expected {problem}")


def _key_ids(field_name: str, value: Any) -> tuple[str, ...]:
    key_ids = _typed(field_name, value, list, "a list of key ids")
    for key_id in key_ids:
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise InvalidPolicy(
                f"{field_name}: expected sha256: and 64 lower-case hex digits, not {ascii(key_id)[:80]}"
            )
    return tuple(dict.fromkeys(key_ids))


def _typed(field_name: str, value: Any, kind: type, expected: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidPolicy(f"{field_name}: expected {expected}, not {ascii(value)[:80]}")
    return value


def _check_fields(prefix: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise InvalidPolicy(f"{prefix}{ascii(unknown[0])[1:-1][:80]}: unknown; expected {', '.join(sorted(known))}")
