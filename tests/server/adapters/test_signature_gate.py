"""The gate at a load: whatever way a digest came to residency, one of its names must allow it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_files import lora_bytes
from residency_house import House
from signing_policies import rule, write_policy
from store_adapters import publish

from hotshoe.registry.errors import AdapterNotFound, SignaturesMissing
from hotshoe.registry.signing.keys import PrivateKey
from hotshoe.registry.signing.policy import PolicyFile
from hotshoe.registry.verification import Verifier
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.errors import AdapterUnusable
from hotshoe.server.services.status import status_of

KEY = PrivateKey.new()
NOWHERE = f"sha256:{'0' * 64}"


def guard(house: House, directory: Path, text: str) -> SignatureGate:
    """Has the house's residency read through a gate."""
    gate = SignatureGate(house.registry, Verifier(house.registry, PolicyFile(write_policy(directory, text, KEY))))
    house.registry_source = gate
    house.residency.close()
    house.residency = house.new_residency()
    return gate


def test_a_load_by_digest_is_refused_and_says_why(new_house: Callable[..., House], tmp_path: Path) -> None:
    house = new_house()
    gate = guard(house, tmp_path, rule("*", "require"))
    with pytest.raises(AdapterUnusable) as caught:
        house.residency.load(house.digests[0])
    assert isinstance(caught.value.__cause__, SignaturesMissing)
    assert b"SIGNATURES_MISSING" in status_of(caught.value).SerializeToString()
    with pytest.raises(SignaturesMissing, match="adapter-0@"):
        gate.resolve(f"adapter-0@{house.digests[0]}")
    assert house.residency.residents() == []


def test_one_name_that_allows_it_is_enough_for_a_load_not_for_a_request(
    new_house: Callable[..., House], tmp_path: Path
) -> None:
    house = new_house()
    gate = guard(house, tmp_path, rule("open/*", "off") + rule("*", "require"))
    files = lora_bytes(house.base, seed=0, rank=4)
    assert publish(house.registry, "open/a", files, base=house.base)[0].digest == house.digests[0]
    assert house.residency.load(house.digests[0]).digest == house.digests[0]
    assert gate.resolve(f"open/a@{house.digests[0]}").name == "open/a"
    with pytest.raises(SignaturesMissing):
        gate.resolve(f"adapter-0@{house.digests[0]}")


def test_without_a_policy_it_is_the_registry(new_house: Callable[..., House]) -> None:
    house = new_house()
    gate = SignatureGate(house.registry, None)
    digest = house.digests[0]
    assert gate.resolve(f"adapter-0@{digest}") == gate.adapter_record(digest) == house.registry.adapter_record(digest)
    assert gate.adapter_files(digest) == house.registry.adapter_files(digest)
    with pytest.raises(AdapterNotFound):
        gate.adapter_record(NOWHERE)
