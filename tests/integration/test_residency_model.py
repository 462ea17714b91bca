"""A whole server beside a model of it that fits a page: what is published, tagged, in memory, pinned, or gone.

HOTSHOE_RESIDENCY_EXAMPLES=200 has it try so many histories, --hypothesis-profile=explore others than the last time.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from canary_adapters import write_canary
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model_directories import tiny_model
from server_process import ServerProcess, until
from store_children import age

from hotshoe.clients import Client, NotFound, ResourceExhausted
from hotshoe.clients.retry import NO_RETRY
from hotshoe.protos.v1.residency_pb2 import TIER_DEVICE, TIER_HOST

EXAMPLES = int(os.environ.get("HOTSHOE_RESIDENCY_EXAMPLES", "4"))
STEPS = 30
SLOTS = 2
NAMES = ("a", "b", "c")
VERSIONS = 3  # of each name, which no other name has
DAY = 24 * 3600.0
NOWHERE = f"sha256:{'0' * 64}"

names = st.sampled_from(NAMES)
versions = st.integers(0, VERSIONS - 1)


class Server(RuleBasedStateMachine):
    """One caller's steps, one after the other. What is in memory stays there until it is unloaded: the host has room
    for all, and the device, which has not, gives the least recently used back to it.
    """

    client: Client
    store: Path
    canaries: dict[tuple[str, int], tuple[Path, int]]  # each version's directory and token
    digests: dict[tuple[str, int], str]  # of those that were published once

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}  # by name
        self.stored: dict[str, str] = {}  # the name of each digest
        self.lost: dict[str, str] = {}  # of each name, a digest that was collected
        self.resident: set[str] = set()
        self.pinned: dict[str, str] = {}  # in which tier

    @initialize()
    def publish_all(self) -> None:
        for name in NAMES:
            self.publish(name, 0)

    # What the registry has.

    @rule(name=names, version=versions)
    def publish(self, name: str, version: int) -> None:
        path, _ = self.canaries[name, version]
        digest = self.client.publish_directory(path, name).adapter.digest
        assert self.digests.setdefault((name, version), digest) == digest
        self.tags[name], self.stored[digest] = digest, name

    @rule(name=names)
    def untag(self, name: str) -> None:
        if self.tags.pop(name, None):
            self.client.delete_tag(name, "latest")
        else:
            with pytest.raises(NotFound):
                self.client.delete_tag(name, "latest")

    @rule()
    def collect(self) -> None:
        """What no tag has and memory has not is gone once the registry has heard that it was unloaded."""
        age(self.store, 2 * DAY)
        kept = {digest for digest in self.stored if digest in self.tags.values() or digest in self.resident}

        def is_collected() -> bool:
            self.client.collect_garbage()
            return {adapter.digest for adapter in self.client.list_adapters()} == kept

        until(is_collected)
        self.lost |= {name: digest for digest, name in self.stored.items() if digest not in kept}
        self.stored = {digest: self.stored[digest] for digest in kept}

    # What memory has.

    def drawn(self, data: st.DataObject) -> tuple[str, str, str | None]:
        """A name, a reference to its tag or to a version by its digest, and that digest, None if it leads nowhere."""
        name = data.draw(names)
        known = sorted(digest for digest, of in self.stored.items() if of == name)
        digest = data.draw(st.sampled_from([None, *known, self.lost.get(name, NOWHERE)]))
        if digest is None:
            return name, name, self.tags.get(name)
        return name, f"{name}@{digest}", digest if digest in self.stored else None

    def has_room(self, digest: str) -> bool:
        """Whether it has a slot, or one is not kept for others that are pinned there."""
        return digest in self.on_device() or list(self.pinned.values()).count("device") < SLOTS

    def on_device(self) -> set[str]:
        return {one.digest for one in self.client.list_resident() if one.tier == TIER_DEVICE}

    @rule(data=st.data(), on_host=st.sampled_from((False, False, False, True)), pin=st.booleans())
    def load(self, data: st.DataObject, on_host: bool, pin: bool) -> None:
        name, reference, digest = self.drawn(data)
        if digest is None:
            with pytest.raises(NotFound):
                self.client.load(reference)
            return
        if not on_host and not self.has_room(digest):
            with pytest.raises(ResourceExhausted):
                self.client.load(reference, pin=pin)
            return
        tier = "host" if on_host else "device"
        loaded = self.client.load(reference, tier=tier, pin=pin)
        assert (loaded.digest, loaded.name) == (digest, name)
        assert loaded.tier == TIER_DEVICE or on_host and loaded.tier == TIER_HOST
        self.resident.add(digest)
        if pin and self.pinned.get(digest) != "device":
            self.pinned[digest] = tier

    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        _, reference, digest = self.drawn(data)
        if digest is None:
            with pytest.raises(NotFound):
                self.client.unload(reference)
            return
        assert self.client.unload(reference).found == (digest in self.resident)
        self.resident.discard(digest)
        self.pinned.pop(digest, None)

    @rule(data=st.data(), tokens=st.integers(1, 3))
    def generate(self, data: st.DataObject, tokens: int) -> None:
        _, reference, digest = self.drawn(data)
        options: Any = {"adapters": [reference], "max_new_tokens": tokens, "ignore_eos": True}
        if digest is None:
            with pytest.raises(NotFound):
                self.client.generate("hi", **options)
            return
        if not self.has_room(digest):
            with pytest.raises(ResourceExhausted):
                self.client.generate("hi", **options)
            if digest not in self.resident:  # it may be on its way to the host: a request had asked for it
                self.client.unload(reference)
            return
        answer = self.client.generate("hi", **options)
        [token] = {self.canaries[key][1] for key, known in self.digests.items() if known == digest}
        assert answer.adapters[0].digest == digest
        assert [one.token_id for one in answer.completions[0].tokens] == [token] * tokens
        self.resident.add(digest)
        until(lambda: not any(one.running_requests for one in self.client.list_resident()))
        assert digest in self.on_device()

    @precondition(lambda self: len(self.pinned) > SLOTS)
    @rule()
    def unload_all_pinned(self) -> None:
        for digest in sorted(self.pinned):
            self.client.unload(f"{self.stored[digest]}@{digest}")
        self.resident -= set(self.pinned)
        self.pinned = {}

    # What holds after each step.

    @invariant()
    def memory_is_as_it_should_be(self) -> None:
        residents = {one.digest: one for one in self.client.list_resident()}
        assert set(residents) == self.resident
        assert {digest for digest, one in residents.items() if one.pinned} == set(self.pinned)
        assert sum(one.tier == TIER_DEVICE for one in residents.values()) <= SLOTS
        assert all(self.stored[digest] == one.name for digest, one in residents.items())

    @invariant()
    def tags_are_where_they_were_left(self) -> None:
        known = {adapter.digest: adapter for adapter in self.client.list_adapters()}
        assert set(known) == set(self.stored)
        for name, digest in self.tags.items():
            assert "latest" in known[digest].tags and known[digest].name == name

    def teardown(self) -> None:
        """Nothing is left, for the next history and as the last thing to be asserted."""
        for digest in self.resident:
            self.client.unload(f"{self.stored[digest]}@{digest}")
        for name in list(self.tags):
            self.untag(name)
        self.resident = set()
        self.collect()
        assert self.stored == {}


def test_a_server_does_as_its_model_does(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server, model = start_server("--adapter-slots", str(SLOTS), "--doctor", "off"), tiny_model()
    tokens = iter(range(40, 200))
    canaries: dict[tuple[str, int], tuple[Path, int]] = {}
    for number, key in enumerate((name, version) for name in NAMES for version in range(VERSIONS)):
        token = next(tokens)
        canaries[key] = (write_canary(tmp_path / "-".join(map(str, key)), model, token, number=number), token)
    with Client(server.ready["grpc"], retry=NO_RETRY) as client:
        own = {"client": client, "store": tmp_path / "registry", "canaries": canaries, "digests": {}}
        machine = type("ServerOfThisTest", (Server,), own)
        run_state_machine_as_test(machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))
    assert "Traceback" not in server.log
