"""The Triton kernels, compiled at the sizes of a model of 8 billion weights, for a Hopper GPU if not said: none needed.

Arguments are specialized as a launch does it, by what 16 divides: it decides how kernels load, and so their memory.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction  # noqa: E402

from hotshoe.kernels import harness_worker  # noqa: E402
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment  # noqa: E402
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import TASKS, random_nf4
from hotshoe.kernels.low_rank_table import LowRankSegment, LowRankTable, LowRankTerm  # noqa: E402
from hotshoe.kernels.site_updates import UpdateVectors, plan_updates  # noqa: E402
from hotshoe.kernels.triton import (  # noqa: E402
    add_low_rank,
    dequantize_nf4,
    gelu_tanh_mul,
    logit_stats,
    nf4_linear,
    paged_attention,
    rms_norm,
    rope_write_kv,
    scale_inputs,
    silu_mul,
)
from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, NF4_VALUES, Nf4Weight  # noqa: E402

SHARED_BYTES = {90: 227 << 10, 86: 99 << 10}  # for one program: Hopper; consumers' cards
HIDDEN, WIDTHS = 4096, (4096, 1024, 1024)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the same kernels run on the GPU")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., dict[str, Any]]:
    """Compiles what a call would launch: the last of each kernel, by name."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def build_launches(call: Callable[[], object], *, capability: int = 90) -> dict[str, Any]:
        launches: dict[str, dict[str, Any]] = {}

        def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            launch = harness_worker.describe(kernel, args, kwargs)
            launches[json.dumps(launch, sort_keys=True)] = launch

        with monkeypatch.context() as patch:
            patch.setattr(JITFunction, "run", record)
            call()
        built = harness_worker.build(None, launches.values(), capability=capability)
        assert built
        assert all(kernel.metadata.shared <= SHARED_BYTES[capability] for kernel in built)
        assert all("cubin" in kernel.asm for kernel in built)
        return {kernel.metadata.name: kernel for kernel in built}

    return build_launches


@pytest.mark.parametrize(("rows", "permute"), [(1, False), (64, False), (64, True)])
def test_the_nf4_linear_feeds_the_tensor_cores_from_registers(rows: int, permute: bool, build: Any) -> None:
    out, blocks = sum(WIDTHS), sum(WIDTHS) * HIDDEN // BLOCK
    weight = Nf4Weight(
        out, HIDDEN, empty(out * HIDDEN // 2, dtype=torch.uint8), NF4_VALUES, empty(blocks, dtype=torch.uint8),
        torch.zeros(256), empty(blocks // NESTED_BLOCK, dtype=torch.float32),
    )  # fmt: skip
    table = LowRankTable(empty(8, HIDDEN, 48), empty(128, out), WIDTHS)
    segments = [LowRankSegment(row, row + 1, (LowRankTerm(0, (16, 16, 16)),)) for row in range(rows)]
    updates, tiles = plan_updates(table, segments, num_rows=rows)
    float32, count = torch.float32, updates.ranks.shape[0]
    vectors = UpdateVectors(
        empty(count, 3, HIDDEN, dtype=float32), empty(count, out, dtype=float32), empty(count, out, dtype=float32),
        torch.zeros(count, dtype=torch.int32),
    )  # fmt: skip
    updates = dataclasses.replace(updates, vectors=vectors)
    x = empty(rows, HIDDEN)
    built = build(lambda: nf4_linear.nf4_linear(x, weight, empty(out), updates, tiles, permute=permute))
    assert set(built) == {"_shrink", "_nf4_linear", "_add_parts"}
    assert ("mov.b32 h0, 0xbebfbfbf;" in built["_nf4_linear"].asm["ptx"]) == permute
    products = [line for line in built["_nf4_linear"].asm["ptx"].splitlines() if "wgmma.mma_async" in line]
    assert products
    assert all(line.count("{") == 2 for line in products)  # the sums and the weights; x alone lies in shared memory


def test_low_rank_updates_build(build: Any) -> None:
    table = LowRankTable(empty(8, HIDDEN, 48), empty(128, sum(WIDTHS)), WIDTHS)
    segments = [LowRankSegment(0, 200, (LowRankTerm(0, (64, 64, 64)),))]
    call = lambda: add_low_rank.add_low_rank(empty(200, sum(WIDTHS)), empty(200, HIDDEN), table, segments)  # noqa: E731
    assert set(build(call)) == {"_shrink", "_finish"}


@pytest.mark.parametrize(
    ("window", "heads", "kv_heads", "head_dim", "cap", "capability"),
    [
        (None, 32, 8, 128, None, 90),
        (4096, 32, 8, 128, None, 90),
        (None, 16, 1, 256, None, 86),
        (4096, 8, 4, 256, 50.0, 86),
    ],
)
def test_attention_builds(
    window: int | None, heads: int, kv_heads: int, head_dim: int, cap: float | None, capability: int, build: Any
) -> None:
    decodes, prompt = torch.zeros(2, 64, dtype=torch.int64), torch.zeros(32, dtype=torch.int64)
    batch = AttentionBatch(2, decodes, torch.tensor([64, 20]), (PrefillSegment(2, 34, prompt),))
    query, kv = empty(34, heads, head_dim), empty(64, 2, kv_heads, head_dim)
    call = lambda: paged_attention.paged_attention(query, kv, batch, scale=0.1, window=window, cap=cap)  # noqa: E731
    assert set(build(call, capability=capability)) == {"_attend", "_combine"}


def test_the_pointwise_kernels_build(build: Any) -> None:
    def call() -> None:
        rms_norm.rms_norm(empty(2, HIDDEN), empty(2, HIDDEN), empty(HIDDEN), 1e-5, even_first=True)
        rms_norm.rms_norm(empty(2, HIDDEN), None, empty(HIDDEN, dtype=torch.float32), 1e-6)
        silu_mul.silu_mul(empty(2, 28672), even_first=True)
        gelu_tanh_mul.gelu_tanh_mul(empty(2, 28672), even_first=True)
        angles = empty(2, 128, dtype=torch.float32)
        slots = torch.zeros(2, dtype=torch.int64)
        rope_write_kv.rope_write_kv(empty(2, 6144), angles, angles, empty(64, 2, 8, 128), slots, empty(128), empty(128))

        logit_stats.logit_stats(torch.zeros(2, 128_256), torch.ones(2))

    assert set(build(call)) == {"_rms_norm", "_silu_mul", "_gelu_tanh_mul", "_rope_write_kv", "_logit_stats"}


def test_what_prompts_and_scaled_inputs_need_builds(build: Any) -> None:
    def call() -> None:
        given = TASKS["scale_inputs"].inputs(Draw(torch.Generator(), torch.device("cpu"), torch.bfloat16, True))
        scale_inputs.scale_inputs(**given, even_first=True)
        weight = random_nf4(Draw(torch.Generator(), torch.device("cpu"), torch.bfloat16, True), 64, HIDDEN)
        dequantize_nf4.dequantize_nf4(weight, torch.bfloat16)

    assert set(build(call)) == {"_scale_inputs", "_dequantize_nf4"}
