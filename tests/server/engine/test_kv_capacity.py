"""The key-value cache's size: what is asked for, or what a device has room for; a GPU's on torch's "meta" device."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.kv_capacity import CPU_TOKENS, KvCapacity, kv_capacity
from hotshoe.server.model import device_memory
from hotshoe.server.model.backends import Backend, cuda_backend, reference_backend, triton_backend
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.device_memory import free_bytes
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.workspace import StepLimits, Workspace, step_bytes, workspace

META = torch.device("meta")
GIB = 1 << 30


def decoder_of(backend: Backend, **config: Any) -> Decoder:
    from hotshoe.server.gpu_session.random_base import RandomCheckpoint
    from hotshoe.server.gpu_session.sizes import DRY

    checkpoint = RandomCheckpoint(DRY.config | config, torch.device("cpu"))
    return read_decoder(checkpoint, checkpoint.spec, backend)


@pytest.fixture(scope="module")
def on_cpu() -> Decoder:
    return decoder_of(reference_backend())


@pytest.fixture(scope="module", params=["triton", "triton, sdpa", "cuda"])
def on_gpu(request: pytest.FixtureRequest) -> Decoder:
    if request.param == "cuda":
        return decoder_of(cuda_backend(META))
    pytest.importorskip("triton")
    return decoder_of(triton_backend(META, "attention=sdpa" if "sdpa" in request.param else ""))


def capacity(decoder: Decoder, free: int | None, *, adapters: int = GIB, **config: Any) -> KvCapacity:
    return kv_capacity(EngineConfig(**config), decoder, adapter_bytes=adapters, free_bytes=free)


def steps_of(decoder: Decoder, page: int = 16) -> Workspace:
    return workspace(decoder.spec, decoder.backend, StepLimits(512, 256, 32, page))


def test_one_token_is_counted_as_the_cache_holds_it(on_cpu: Decoder, on_gpu: Decoder) -> None:
    for decoder, values in ((on_cpu, 4), (on_gpu, 2)):
        spec = decoder.spec
        assert decoder.kv_token_bytes == spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * values
    found = capacity(on_cpu, None, kv_tokens=160)
    assert on_cpu.new_kv_cache(160 + 16).size_bytes == found.size_bytes


def test_what_is_asked_for_is_given_whatever_is_free(on_cpu: Decoder, on_gpu: Decoder) -> None:
    for decoder in (on_cpu, on_gpu):
        found = capacity(decoder, 1, kv_tokens=1 << 20, page_tokens=64)
        assert (found.tokens, found.pages) == (1 << 20, 1 << 14)


@pytest.mark.parametrize("page", [16, 48])
def test_on_a_cpu_it_is_bounded_and_at_most_half_of_what_is_free(on_cpu: Decoder, page: int) -> None:
    whole, size = CPU_TOKENS // page * page, on_cpu.kv_token_bytes
    for free in (None, 100 * GIB):
        assert capacity(on_cpu, free, page_tokens=page).tokens == whole
    few = capacity(on_cpu, 2000 * size, page_tokens=page).tokens
    assert few % page == 0 and 1000 - page < few <= 1000
    with pytest.raises(ValueError, match=r"--kv-tokens: half of the .* one page of .*--page-tokens"):
        capacity(on_cpu, 2 * page * size - 1, page_tokens=page)


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.0])
def test_on_a_gpu_it_is_as_many_whole_pages_as_fit(on_gpu: Decoder, page: int, fraction: float) -> None:
    free, steps = 6 * GIB + 12_345, steps_of(on_gpu, page)
    found = capacity(on_gpu, free, page_tokens=page, free_gpu_memory_fraction=fraction)
    room = fraction * free - GIB - steps.fixed
    of_page = page * (on_gpu.kv_token_bytes + steps.per_token)
    assert found.tokens % page == 0 and found.tokens > on_gpu.spec.max_sequence_length
    assert found.size_bytes + (found.tokens + page) * steps.per_token <= room
    assert (found.pages + 2) * of_page > room


def test_a_gpu_without_room_for_the_model_s_longest_request_is_told_with_every_figure(on_gpu: Decoder) -> None:
    spec, steps = on_gpu.spec, steps_of(on_gpu)
    needed = (spec.max_sequence_length + 16) * (on_gpu.kv_token_bytes + steps.per_token)
    just = steps.fixed + GIB + needed
    assert capacity(on_gpu, just, free_gpu_memory_fraction=1.0).tokens == spec.max_sequence_length
    with pytest.raises(ValueError) as raised:
        capacity(on_gpu, just - 1, free_gpu_memory_fraction=1.0)
    text, fits = str(raised.value), spec.max_sequence_length - 16
    assert text.startswith(f"--kv-tokens: one request of the model's length, {spec.max_sequence_length} tokens, takes ")
    assert f"and {fits} tokens fit" in text and f"has {just / GIB:.2f} GiB free" in text
    for flag in ("--free-gpu-memory-fraction 1 ", "--max-step-tokens 512", "--max-running-requests 32"):
        assert flag in text
    assert "1.00 GiB more (--device-bytes)" in text
    assert capacity(on_gpu, just - 1, kv_tokens=fits).tokens == fits
    with pytest.raises(ValueError, match="and 0 tokens fit"):
        capacity(on_gpu, 1000)


def test_what_steps_keep_is_left_to_them() -> None:
    """Results and block tables of every recorded step, of as many rows as there are sequences."""
    pytest.importorskip("triton")
    decoder = decoder_of(triton_backend(META), vocab_size=3000)
    few, many = (workspace(decoder.spec, decoder.backend, StepLimits(512, 256, n, 16)).fixed for n in (8, 12))
    assert many - few == 12 * 4 * (4 * (3000 + decoder.spec.hidden_size) + decoder.spec.max_sequence_length // 16)


def test_linears_that_lie_as_one_take_what_they_take_apart() -> None:
    from hotshoe.server.gpu_session.sizes import DRY

    kinds = (("LlamaForCausalLM", "llama"), ("Phi3ForCausalLM", "phi3"))
    specs = [spec_from_config({**DRY.config, "architectures": [name], "model_type": kind}) for name, kind in kinds]
    assert [len({linear.target for linear, _ in spec.linears()}) for spec in specs] == [7, 4]
    apart, fused = (step_bytes(spec, rows=100, logit_rows=10, itemsize=2) for spec in specs)
    assert apart == fused


def test_a_vast_gpu_has_no_more_slots_than_steps_can_name(on_gpu: Decoder) -> None:
    found = capacity(on_gpu, 1 << 50)
    assert found.tokens + 16 == 1 << 31


def test_a_gpu_is_asked_once_torch_has_given_back_what_it_only_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [3 * GIB]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(5 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (left[-1], 8 * GIB))
    assert free_bytes(torch.device("cuda")) == 5 * GIB


def test_a_machine_is_asked_for_what_could_be_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert (free_bytes(torch.device("cpu")) or GIB) > 1 << 20
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24684084 kB\nMemFree:        1 kB\nMemAvailable:   1024 kB\n")
    monkeypatch.setattr(device_memory, "_MEMINFO", meminfo)
    assert free_bytes(torch.device("cpu")) == 1 << 20
    monkeypatch.setattr(device_memory, "_MEMINFO", tmp_path / "nowhere")
    assert free_bytes(torch.device("cpu")) is None


def test_scores_with_a_cap_lie_in_memory_where_a_library_attends() -> None:
    decoder = decoder_of(cuda_backend(META))
    capped = replace(decoder.spec, attention_cap=50.0)
    sizes = [workspace(spec, decoder.backend, StepLimits(512, 256, 32, 16)).fixed for spec in (capped, decoder.spec)]
    assert sizes[0] - sizes[1] >= 2 * 4 * capped.num_heads * 512 * capped.max_sequence_length
