"""Loading, pinning and watching adapters through a real server."""

from pathlib import Path

import grpc
import pytest
from model_directories import tiny_model
from peft_adapters import write_ia3, write_lora
from server_process import ServerProcess, publish

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

STAGE_READY = residency_pb2.LoadAdapterResponse.STAGE_READY


@pytest.fixture(scope="module")
def adapters(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, registry_pb2.Adapter]:
    directory: Path = tmp_path_factory.mktemp("adapters")
    model = tiny_model()
    return {
        "poet": publish(server, "poet", write_lora(directory / "poet", model, seed=21)),
        "judge": publish(server, "judge", write_ia3(directory / "judge", model, seed=22)),
    }


def _load(server: ServerProcess, **fields: object) -> list[residency_pb2.LoadAdapterResponse]:
    return list(server.residency.LoadAdapter(residency_pb2.LoadAdapterRequest(**fields)))


def _residents(server: ServerProcess) -> dict[str, residency_pb2.ResidentAdapter]:
    response = server.residency.ListResidentAdapters(residency_pb2.ListResidentAdaptersRequest())
    return {adapter.name: adapter for adapter in response.adapters}


def _unload(server: ServerProcess, name: str) -> None:
    server.residency.UnloadAdapter(residency_pb2.UnloadAdapterRequest(reference=name))


def test_a_load_tells_its_stages_and_ends_with_the_adapter(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]
) -> None:
    steps = _load(server, reference="poet", pin=True)
    stages = [step.stage for step in steps]
    assert stages == sorted(stages)
    assert stages[-1] == STAGE_READY
    ready = steps[-1].adapter
    assert (ready.name, ready.digest, ready.kind) == ("poet", adapters["poet"].digest, "LORA")
    assert ready.tier == residency_pb2.TIER_DEVICE
    assert ready.pinned
    assert steps[-1].completed_bytes == steps[-1].total_bytes > 0
    assert _residents(server)["poet"].last_use_time.seconds > 1_700_000_000
    _unload(server, "poet")
    assert "poet" not in _residents(server)


def test_an_adapter_can_be_kept_on_the_host_only(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]
) -> None:
    steps = _load(server, reference="judge:latest", tier=residency_pb2.TIER_HOST)
    assert steps[-1].adapter.tier == residency_pb2.TIER_HOST
    assert not steps[-1].adapter.pinned
    _unload(server, "judge")


def test_a_request_loads_what_it_needs(server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]) -> None:
    _unload(server, "poet")
    request = generation_pb2.GenerateRequest(
        text="hi", adapters=[{"reference": "poet"}], stopping={"max_new_tokens": 2, "ignore_eos": True}
    )
    cold = server.generation.Generate(request).usage
    assert cold.adapter_load_time.nanos > 0
    assert _residents(server)["poet"].running_requests == 0
    assert server.generation.Generate(request).usage.adapter_load_time.nanos == 0


def test_what_is_unknown_is_not_found(server: ServerProcess) -> None:
    for call in (lambda: _load(server, reference="nobody"), lambda: _unload(server, "nobody")):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("tier", [residency_pb2.TIER_DISK, 9])
def test_a_tier_that_is_not_memory_is_invalid(
    server: ServerProcess, adapters: dict[str, registry_pb2.Adapter], tier: int
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _load(server, reference="poet", tier=tier)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("interval_ms", [1, 60_001])
def test_an_interval_out_of_bounds_is_invalid(server: ServerProcess, interval_ms: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=interval_ms)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watcher_sees_requests_run_and_end(server: ServerProcess, adapters: dict[str, registry_pb2.Adapter]) -> None:
    watch = server.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=200)
    assert next(watch).max_resident_adapters == 32
    request = generation_pb2.GenerateRequest(
        text="hi", adapters=[{"reference": "poet"}], stopping={"max_new_tokens": 200, "ignore_eos": True}
    )

    def is_busy(status: residency_pb2.WatchStatusResponse) -> bool:
        poets = [adapter.running_requests for adapter in status.adapters if adapter.name == "poet"]
        return bool(status.running_requests and status.generation_tokens_per_second) and poets == [1]

    future = server.generation.Generate.future(request)
    for busy in watch:
        if is_busy(busy):
            break
        if future.done():  # the watcher saw nothing of it: a fast answer, or a slow look
            future = server.generation.Generate.future(request)
    assert is_busy(busy) and busy.kv_cache_usage > 0
    future.result()
    quiet = next(status for status in watch if not status.running_requests)
    assert quiet.kv_cache_usage == 0
    watch.cancel()
