"""Who a request's tenant is, and that tenants see nothing of each other's cache."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prefix_oracle import OTHER, SUFFIX_TOKENS, TENANT_KEY, VICTIM, area_under_curve, guess
from server_process import ServerProcess, command, launch

from hotshoe.protos.v1 import generation_pb2

PROMPT = "A system prompt that everybody sends, long enough to fill some pages of the cache."


@pytest.fixture(scope="module")
def shared(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that is told who a tenant is."""
    directory = tmp_path_factory.mktemp("shared")
    flags = ("--base-cache", str(tmp_path_factory.getbasetemp() / "bases"), "--tenant-metadata", TENANT_KEY)
    server = launch(directory, command(tiny_base, directory / "registry", *flags))
    yield server
    server.end()


def cached_tokens(server: ServerProcess, *metadata: tuple[str, str]) -> int:
    stopping = generation_pb2.StopCriteria(max_new_tokens=1, ignore_eos=True)
    request = generation_pb2.GenerateRequest(text=PROMPT, stopping=stopping)
    return server.generation.Generate(request, metadata=metadata).usage.cached_prompt_tokens


def test_a_prefix_is_found_by_its_own_tenant_only(shared: ServerProcess) -> None:
    found_by_its_own = len(PROMPT) // 16 * 16
    found = [cached_tokens(shared, (TENANT_KEY, tenant)) for tenant in ("a", "b", "a", "b")]
    assert found == [0, 0, found_by_its_own, found_by_its_own]
    assert [cached_tokens(shared), cached_tokens(shared)] == [0, found_by_its_own], "no name is a tenant of its own"
    with pytest.raises(grpc.RpcError) as error:
        cached_tokens(shared, (TENANT_KEY, "a"), (TENANT_KEY, "b"))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "more than one tenant" in error.value.details()


def test_what_a_prompt_takes_tells_nobody_else_what_was_asked(shared: ServerProcess) -> None:
    """As tokens that had to be computed: how long that takes is a matter of the machine."""
    found = guess(shared, 40, prompt_tokens=128)
    assert area_under_curve(*found[VICTIM].tokens) == 1.0, "whoever asked can tell, or there would be nothing to tell"
    assert area_under_curve(*found[OTHER].tokens) == 0.5
    assert {tokens for of in found[OTHER].tokens for tokens in of} == {128 + SUFFIX_TOKENS}


def test_without_the_flag_metadata_names_nobody(server: ServerProcess) -> None:
    cached_tokens(server, (TENANT_KEY, "a"))
    assert cached_tokens(server, (TENANT_KEY, "b")) == len(PROMPT) // 16 * 16
