"""Who a request's tenant is, and that tenants see nothing of each other's cache."""

import grpc
import pytest
from server_process import ServerProcess

from hotshoe.protos.v1 import generation_pb2

PROMPT = "A system prompt that everybody sends, long enough to fill some pages of the cache."


def cached_tokens(server: ServerProcess, *metadata: tuple[str, str]) -> int:
    stopping = generation_pb2.StopCriteria(max_new_tokens=1, ignore_eos=True)
    request = generation_pb2.GenerateRequest(text=PROMPT, stopping=stopping)
    return server.generation.Generate(request, metadata=metadata).usage.cached_prompt_tokens


def test_a_prefix_is_found_by_its_own_tenant_only(start_server) -> None:
    server = start_server("--tenant-metadata", "x-tenant")
    shared = len(PROMPT) // 16 * 16
    found = [cached_tokens(server, ("x-tenant", tenant)) for tenant in ("a", "b", "a", "b")]
    assert found == [0, 0, shared, shared]
    assert [cached_tokens(server), cached_tokens(server)] == [0, shared], "who names no tenant is one of their own"
    with pytest.raises(grpc.RpcError) as error:
        cached_tokens(server, ("x-tenant", "a"), ("x-tenant", "b"))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "more than one tenant" in error.value.details()


def test_without_the_flag_metadata_names_nobody(server: ServerProcess) -> None:
    cached_tokens(server, ("x-tenant", "a"))
    assert cached_tokens(server, ("x-tenant", "b")) == len(PROMPT) // 16 * 16
