"""What a step's rows get beside the base: against the formulas in float64, whatever shares the batch."""

from collections.abc import Sequence

import canonical_adapters as canonical
import pytest
import torch
from canonical_adapters import LINEAR_SHAPES, Stack, site_output
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hotshoe.kernels.low_rank import LowRankKind
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.server.adapters.adapter_batch import AdapterBatch, AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.sites import SITES

KINDS: tuple[LowRankKind, ...] = ("gathered", "segmented", "reference")
ADAPTERS: tuple[LoweredAdapter, ...] = (
    canonical.lora(8, seed=1),
    canonical.lora(16, seed=2, targets=("q_proj", "v_proj")),
    canonical.lora({"q_proj": 1, "k_proj": 64, "v_proj": 5, "o_proj": 17}, seed=3, targets=canonical.TARGETS[:4]),
    canonical.lora(64, seed=4, layers=(1,), bias=True),
    canonical.ia3(seed=5),
    canonical.ia3(seed=6, outputs=("q_proj", "up_proj"), inputs=("gate_proj", "k_proj", "o_proj")),
    canonical.lora(3, seed=7, bias=True, targets=("up_proj", "down_proj")),
    canonical.prefix(),
)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def slots_with(
    adapters: Sequence[LoweredAdapter], kind: LowRankKind = "gathered", dtype: torch.dtype = torch.float32
) -> AdapterSlots:
    slots = AdapterSlots(max(len(adapters), 1), canonical.small_shape(), kind=kind, dtype=dtype)
    for slot, adapter in enumerate(adapters):
        slots.place(slot, adapter)
    return slots


def run_site(batch: AdapterBatch | None, layer: int, site: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One site as the decoder runs it."""
    if batch is None:
        return x @ weight.T + bias
    xs = batch.scaled_inputs(layer, site, x)
    widths = [LINEAR_SHAPES[target][0] for target in SITES[site][0]]
    parts = [(xs[0] if len(xs) == 1 else xs[i]) @ w.T for i, w in enumerate(weight.split(widths))]
    y = torch.cat(parts, 1)
    batch.scale_output(layer, site, y)
    y += bias
    batch.add_delta(layer, site, x, y)
    return y


def base_of(site: str) -> tuple[Tensor, Tensor, int]:
    """A site's weight, bias and input width."""
    generator = torch.Generator().manual_seed(len(site))
    out_features = sum(LINEAR_SHAPES[target][0] for target in SITES[site][0])
    in_features = LINEAR_SHAPES[SITES[site][0][0]][1]
    return (
        torch.randn(out_features, in_features, generator=generator),
        torch.randn(out_features, generator=generator),
        in_features,
    )


def segments_of(lengths: Sequence[int], stacks: Sequence[Sequence[tuple[int, float]]]) -> list[AdapterSegment]:
    segments, end = [], 0
    for length, stack in zip(lengths, stacks, strict=True):
        segments.append(AdapterSegment(end, end + length, tuple(stack)))
        end += length
    return segments


def check_against_formula(
    slots: AdapterSlots, adapters: Sequence[LoweredAdapter], segments: Sequence[AdapterSegment], dtype: torch.dtype
) -> None:
    rows = segments[-1].end
    batch = slots.batch(segments, rows)
    for layer in range(canonical.LAYERS):
        for site, (targets, *_) in SITES.items():
            weight, bias, in_features = base_of(site)
            x = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(rows))
            y = run_site(batch, layer, site, x, weight, bias)
            for segment in segments:
                stack: Stack = [(adapters[slot], c) for slot, c in segment.stack]
                own = slice(segment.start, segment.end)
                want = site_output(layer, targets, x[own], weight, bias, stack)
                assert (y[own] - want).norm() <= TOLERANCE[dtype] * want.norm(), (layer, site, segment)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_mixes_with_every_other_in_one_batch(kind: LowRankKind, dtype: torch.dtype) -> None:
    stacks = [[(i, 1.0)] for i in range(len(ADAPTERS))] + [[], [(0, 1.0)], [], [(4, 1.0)], [(2, 1.0)]]
    lengths = [1] * (len(ADAPTERS) + 2) + [5, 3, 20]
    check_against_formula(slots_with(ADAPTERS, kind, dtype), ADAPTERS, segments_of(lengths, stacks), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_add_up_with_their_weights(kind: LowRankKind) -> None:
    stacks = [[(0, 0.5), (4, 1.0)], [(4, 0.25), (5, -2.0)], [(3, 2.0), (6, 1.0), (1, 0.1)], [(5, 1.0), (0, 1.0)]]
    check_against_formula(slots_with(ADAPTERS, kind), ADAPTERS, segments_of([1, 1, 4, 3], stacks), torch.float32)


stacks_of_any = st.lists(
    st.tuples(st.integers(0, len(ADAPTERS) - 1), st.sampled_from((1.0, 1.0, 0.5, -1.5))),
    max_size=3,
    unique_by=lambda use: use[0],
)


@pytest.fixture(scope="module", params=KINDS)
def full_slots(request: pytest.FixtureRequest) -> AdapterSlots:
    return slots_with(ADAPTERS, request.param)


@settings(max_examples=30, deadline=None)
@given(
    decodes=st.lists(stacks_of_any, max_size=6),
    prompts=st.lists(st.tuples(stacks_of_any, st.integers(1, 9)), max_size=3),
)
def test_any_batch_equals_the_formulas(
    full_slots: AdapterSlots,
    decodes: list[list[tuple[int, float]]],
    prompts: list[tuple[list[tuple[int, float]], int]],
) -> None:
    lengths = [1] * len(decodes) + [length for _, length in prompts]
    if lengths:
        segments = segments_of(lengths, [*decodes, *(stack for stack, _ in prompts)])
        check_against_formula(full_slots, ADAPTERS, segments, torch.float32)


# A row and its neighbours.

OWN_STACKS = {"lora": [(0, 1.0)], "tall": [(3, 1.0)], "ia3": [(5, 1.0)], "stack": [(2, 0.5), (4, 1.0)], "base": []}
LENGTHS = [1, 1, 1, 1, 1, 6, 4]


@pytest.mark.parametrize("row", (1, 5))  # a decode, a prompt
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", OWN_STACKS)
def test_a_sequences_bits_do_not_depend_on_its_neighbours(
    own: str, kind: LowRankKind, dtype: torch.dtype, row: int
) -> None:
    nan = len(ADAPTERS)
    slots = slots_with([*ADAPTERS, canonical.poisoned(40)], kind, dtype)
    neighbours = {
        "alone": [[]] * len(LENGTHS),
        "same": [OWN_STACKS[own]] * len(LENGTHS),
        "others": [[(i % 7, 1.0)] for i in range(len(LENGTHS))],
        "stacks": [[(i % 7, 1.0), ((i + 2) % 7, 0.5)] for i in range(len(LENGTHS))],
        "poisoned": [[(nan, 1.0)], [(nan, 0.5), (3, 1.0)]] * 3 + [[(nan, 1.0)]],
    }
    results: dict[str, list[Tensor]] = {}
    for name, stacks in neighbours.items():
        segments = segments_of(LENGTHS, [OWN_STACKS[own] if i == row else stacks[i] for i in range(len(LENGTHS))])
        batch = slots.batch(segments, sum(LENGTHS))
        mine = slice(segments[row].start, segments[row].end)
        results[name] = []
        for site in SITES:
            weight, bias, in_features = base_of(site)
            x = torch.randn(sum(LENGTHS), in_features, generator=torch.Generator().manual_seed(len(name)))
            x[mine] = torch.randn(mine.stop - mine.start, in_features, generator=torch.Generator().manual_seed(0))
            # The base's product is taken row by row: what a GEMM makes of its neighbours is not asked here.
            y = torch.cat([run_rows(batch, site, x, weight, i) for i in range(len(x))])
            finish_rows(batch, site, x, y, bias)
            results[name].append(y[mine])
    for name, outputs in results.items():
        assert all(map(torch.equal, outputs, results["alone"])), name


def run_rows(batch: AdapterBatch | None, site: str, x: Tensor, weight: Tensor, row: int) -> Tensor:
    xs = batch.scaled_inputs(1, site, x) if batch else (x,)
    widths = [LINEAR_SHAPES[target][0] for target in SITES[site][0]]
    return torch.cat([xs[i % len(xs)][row : row + 1] @ w.T for i, w in enumerate(weight.split(widths))], 1)


def finish_rows(batch: AdapterBatch | None, site: str, x: Tensor, y: Tensor, bias: Tensor) -> None:
    if batch:
        batch.scale_output(1, site, y)
    y += bias
    if batch:
        batch.add_delta(1, site, x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_base_alone_keep_every_bit(kind: LowRankKind) -> None:
    slots = slots_with([*ADAPTERS, canonical.poisoned()], kind)
    everyone = [(i, 1.0) for i in range(len(ADAPTERS) + 1)]
    segments = segments_of([1, 1, 1, 4, 3], [everyone, [], everyone, everyone, []])
    batch = slots.batch(segments, 10)
    assert batch is not None
    for site in SITES:
        weight, _, in_features = base_of(site)
        x, y = torch.randn(10, in_features), torch.full((10, weight.shape[0]), -0.0)
        base_rows = [1, 7, 8, 9]
        y[8], before = torch.nan, x.clone()
        for scaled in batch.scaled_inputs(1, site, x):
            assert torch.equal(scaled[base_rows], x[base_rows])
        kept = y.clone()
        batch.scale_output(1, site, y)
        batch.add_delta(1, site, x, y)
        assert torch.equal(y[base_rows].view(torch.int32), kept[base_rows].view(torch.int32))
        assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rows_keep_scales_that_bfloat16_cannot_tell_from_one(kind: LowRankKind) -> None:
    scale = canonical.ia3(outputs=(), inputs=("down_proj",))
    for linear in scale.linears.values():
        linear.input_scale.fill_(1.003)
    batch = slots_with([scale], kind).batch(segments_of([1, 64], [[(0, 1.0)], [(0, 1.0)]]), 65)
    assert batch is not None
    x = torch.randn(65, canonical.INTERMEDIATE).bfloat16()
    (scaled,) = batch.scaled_inputs(0, "down", x)
    assert scaled.dtype == torch.bfloat16
    assert torch.equal(scaled, (x.float() * 1.003).bfloat16())


def test_inputs_are_split_only_where_the_targets_scales_differ() -> None:
    slots = slots_with([canonical.ia3(outputs=(), inputs=("gate_proj",)), canonical.lora(8)])
    batch = slots.batch(segments_of([1, 1], [[(0, 1.0)], [(1, 1.0)]]), 2)
    assert batch is not None
    x = torch.randn(2, canonical.HIDDEN)
    gate, up = batch.scaled_inputs(0, "gate_up", x)
    assert up is x and torch.equal(gate[1], x[1]) and not torch.equal(gate[0], x[0])
    assert list(batch.scaled_inputs(0, "qkv", x)) == [x]


# What is planned, and how often.


def test_base_only_steps_cost_nothing() -> None:
    slots = slots_with(ADAPTERS)
    assert slots.batch(segments_of([1, 1, 8], [[], [], []]), 10) is None
    assert slots.batch([], 0) is None
    prefix = len(ADAPTERS) - 1  # a soft prompt has no part in any linear
    assert slots.batch(segments_of([1, 8], [[(prefix, 1.0)], []]), 9) is None


def test_steps_of_the_same_rows_share_their_plans() -> None:
    slots = slots_with(ADAPTERS)
    stacks = [[(0, 1.0)], [], [(2, 1.0)]]
    first = slots.batch(segments_of([1, 1, 1], stacks), 3)
    assert slots.batch(segments_of([1, 1, 1], stacks), 3) is first
    assert slots.batch(segments_of([1, 1, 1], [*stacks[:2], [(2, 0.5)]]), 3) is not first


def test_a_slot_that_was_filled_again_is_never_taken_for_its_predecessor() -> None:
    old, new = canonical.lora(8, seed=1), canonical.lora(8, seed=2)
    slots = AdapterSlots(1, canonical.small_shape())
    segments = segments_of([1, 4], [[(0, 1.0)], [(0, 1.0)]])
    for adapter in (old, new):
        slots.place(0, adapter)
        check_against_formula(slots, [adapter], segments, torch.float32)
        slots.clear(0)


@pytest.mark.parametrize(
    ("segments", "named"),
    [
        ([AdapterSegment(0, 2, ((0, 1.0),)), AdapterSegment(1, 3)], "1:3 after 2"),
        ([AdapterSegment(0, 4, ((0, 1.0),))], "0:4 after 0, of 3 rows"),
        ([AdapterSegment(1, 1)], "1:1"),
        ([AdapterSegment(0, 1, ((1, 1.0),))], "slot 1 is clear"),
    ],
)
def test_segments_that_cannot_be_are_refused(segments: list[AdapterSegment], named: str) -> None:
    slots = AdapterSlots(2, canonical.small_shape())
    slots.place(0, canonical.lora(8))
    with pytest.raises(ValueError, match=named):
        slots.batch(segments, 3)
