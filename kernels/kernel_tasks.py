"""The operations that kernels are judged on: random inputs, what is true in float64, what a user would run instead."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels import reference, reference_low_rank
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.kernels.kernel_task import Draw, Inputs, KernelTask
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm
from hotshoe.kernels.row_tiles import RowTiles, tile_rows
from hotshoe.kernels.site_updates import HAS_INPUT, UpdateVectors
from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, NF4_VALUES, Nf4Weight


def _rms_norm_inputs(draw: Draw) -> Inputs:
    rows, features = (5, 192) if draw.small else (64, 4096)
    return {
        "x": draw.normal(rows, features),
        "residual": draw.normal(rows, features),
        "weight": draw.normal(features),
        "eps": 1e-5,
    }


def _rms_norm_expected(given: Inputs) -> tuple[Tensor, ...]:
    total = given["x"].double() + given["residual"].double()
    return reference.rms_norm(total, given["weight"].double(), given["eps"]), total


def _rms_norm_torch(given: Inputs) -> object:
    total = given["x"] + given["residual"]
    return F.rms_norm(total, given["weight"].shape, given["weight"], given["eps"]), total


def _silu_mul_inputs(draw: Draw) -> Inputs:
    rows, features = (5, 200) if draw.small else (64, 14336)
    return {"gate_up": draw.normal(rows, 2 * features)}


def _silu_mul_torch(given: Inputs) -> object:
    gate, up = given["gate_up"].chunk(2, dim=1)
    return F.silu(gate) * up


def _gelu_tanh_mul_torch(given: Inputs) -> object:
    gate, up = given["gate_up"].chunk(2, dim=1)
    return F.gelu(gate, approximate="tanh") * up


def _rope_inputs(draw: Draw) -> Inputs:
    rows, heads, kv_heads, head_dim, slots = (5, 4, 2, 16, 24) if draw.small else (64, 32, 8, 128, 4096)
    angle = torch.rand(rows, head_dim // 2, generator=draw.generator).repeat(1, 2).to(draw.device) * 6.3
    return {
        "qkv": draw.normal(rows, (heads + 2 * kv_heads) * head_dim),
        "cos": angle.cos(),
        "sin": angle.sin(),
        "kv": draw.normal(slots, 2, kv_heads, head_dim),
        "slots": torch.randperm(slots, generator=draw.generator)[:rows].to(draw.device),
        "q_weight": draw.normal(head_dim),
        "k_weight": draw.normal(head_dim),
        "eps": 1e-6,
    }


def rope_write_kv(given: Inputs) -> tuple[Tensor, ...]:
    """The definition, in the inputs' dtype: the rotated query, and the cache with the new keys and values."""
    qkv, kv = given["qkv"], given["kv"].clone()
    kv_heads, head_dim = kv.shape[2:]
    split = (qkv.shape[1] - 2 * kv_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    query, key, value = (part.unflatten(1, (-1, head_dim)) for part in qkv.split(split, dim=1))
    if given["q_weight"] is not None:
        query = reference.rms_norm(query, given["q_weight"], given["eps"])
        key = reference.rms_norm(key, given["k_weight"], given["eps"])
    kv[given["slots"], 0] = reference.rope(key, given["cos"], given["sin"])
    kv[given["slots"], 1] = value
    return reference.rope(query, given["cos"], given["sin"]), kv


def random_nf4(draw: Draw, out_features: int, in_features: int) -> Nf4Weight:
    """Random codes under random nested scales: every byte value occurs, which quantized weights rarely show."""
    blocks = out_features * in_features // BLOCK
    nested = torch.rand(-(-blocks // NESTED_BLOCK), generator=draw.generator) * 0.02 + 0.01
    return Nf4Weight(
        out_features,
        in_features,
        draw.bytes(out_features * in_features // 2),
        NF4_VALUES.to(draw.device),
        draw.bytes(blocks),
        torch.linspace(-1, 1, 256).to(draw.device),
        nested.to(draw.device),
        offset=0.05,
    )


def _nf4_inputs(draw: Draw) -> Inputs:
    rows, out_features, in_features = (5, 80, 192) if draw.small else (16, 4096, 4096)
    return {"x": draw.normal(rows, in_features), "weight": random_nf4(draw, out_features, in_features)}


def _nf4_bitsandbytes(given: Inputs) -> object:
    from hotshoe.kernels import bnb_linear

    return bnb_linear.linear(given["x"], _packed(given["weight"]))


def _dequantize_bitsandbytes(given: Inputs) -> object:
    from bitsandbytes.functional import dequantize_4bit

    packed = _packed(given["weight"])
    return dequantize_4bit(packed.codes, packed.state)


def _packed(weight: Nf4Weight) -> Any:
    """The weight as bitsandbytes takes it; the last one asked for is kept, so that packing is not timed."""
    from hotshoe.kernels import bnb_linear

    if not _PACKED or _PACKED[0][0] is not weight:
        _PACKED[:] = [(weight, bnb_linear.pack([weight], weight.codes.device))]
    return _PACKED[0][1]


def _scale_inputs_inputs(draw: Draw) -> Inputs:
    rows, features, updates = (5, 192, 3) if draw.small else (32, 14336, 8)
    vectors = UpdateVectors(
        inputs=draw.normal(updates, 2, features, dtype=torch.float32),
        outputs=draw.normal(updates, 1, dtype=torch.float32),
        biases=draw.normal(updates, 1, dtype=torch.float32),
        flags=(torch.arange(updates, dtype=torch.int32) != 1).int().to(draw.device),  # the second has no scales
    )
    stacks = [[(row % updates, 1.0), ((row + 1) % updates, -0.5)][: row % 3] for row in range(rows)]
    tiles = tile_rows([(row, row + 1, stack) for row, stack in enumerate(stacks)], rows)
    return {
        "x": draw.normal(rows, features),
        "vectors": vectors,
        "tiles": RowTiles.of(tiles, draw.device),
        "targets": 2,
    }


def scale_inputs(given: Inputs) -> tuple[Tensor, ...]:
    """The formula, row by row."""
    x, vectors, tiles = given["x"], given["vectors"], given["tiles"]
    scaled = x.expand(given["targets"], -1, -1).clone()
    for row, (first, end) in enumerate(tiles.row_entries.tolist()):
        scale = torch.ones(given["targets"], x.shape[1], dtype=x.dtype, device=x.device)
        for entry in range(first, end):
            update = int(tiles.entries[entry, 2])
            if int(vectors.flags[update]) & HAS_INPUT:
                scale += tiles.weights[entry] * (vectors.inputs[update, : given["targets"]] - 1)
        scaled[:, row] *= scale
    return (scaled,)


def logit_stats_inputs(draw: Draw) -> Inputs:
    """Logits with equal ones, and rows that are not finite."""
    rows, vocab_size = (5, 5000) if draw.small else (32, 128_256)
    logits = draw.normal(rows, vocab_size, scale=4.0, dtype=torch.float32)
    logits[:, vocab_size // 3] = logits[:, vocab_size // 2] = logits.max() + 1  # of equal ones the lower counts
    logits[1, vocab_size - 1], logits[2, 7] = float("inf"), float("nan")
    return {"logits": logits, "temperatures": torch.tensor([1.0, 1, 1, 0.3, 2], device=draw.device).repeat(rows)[:rows]}


def logit_stats(given: Inputs) -> tuple[Tensor, ...]:
    """The definition; rows that are not finite as they come."""
    logits, temperatures = given["logits"].double(), given["temperatures"].double()
    largest = logits.max(dim=1, keepdim=True).values
    totals = ((logits - largest) / temperatures[:, None]).exp().sum(dim=1)
    return logits.argmax(dim=1).int(), logits.isfinite().all(dim=1).int(), totals


def _finite_logit_stats_inputs(draw: Draw) -> Inputs:
    given = logit_stats_inputs(draw)
    given["logits"] = given["logits"].nan_to_num(nan=0.0, posinf=0.0)
    return given


def _low_rank_inputs(draw: Draw) -> Inputs:
    widths, in_features = ((48, 16, 16), 96) if draw.small else ((4096, 1024, 1024), 4096)
    units, scale = 8, in_features**-0.5
    table = LowRankTable(
        draw.normal(units, in_features, len(widths) * UNIT_RANK, scale=scale),
        draw.normal(units * UNIT_RANK, sum(widths)),
        widths,
    )
    one, small, tall = LowRankTerm(0, (16, 16, 16)), LowRankTerm(1, (3, 0, 5), 0.5), LowRankTerm(2, (40, 17, 16), -2.0)
    lengths = (1, 1, 1, 21, 2) if draw.small else (1,) * 32 + (200,)
    segments, start = [], 0
    for i, length in enumerate(lengths):
        terms = ((one,), (), (small,), (tall, one), (small,))[i % 5]
        segments.append(LowRankSegment(start, start + length, terms))
        start += length
    y, x = draw.normal(start + 2, sum(widths)), draw.normal(start + 2, in_features)
    return {"y": y, "x": x, "table": table, "segments": tuple(segments)}


def low_rank_expected(given: Inputs) -> tuple[Tensor, ...]:
    """The formula in float64, row block by row block."""
    y, table = given["y"].to(torch.float64, copy=True), given["table"]
    for segment in given["segments"]:
        rows = slice(segment.start, segment.end)
        for term in segment.terms:
            for target, rank in enumerate(term.ranks):
                if rank:
                    shrunk = given["x"][rows].double() @ table.a_of(term.unit, target, rank).double()
                    y[rows, table.columns[target]] += (
                        term.weight * shrunk @ table.b_of(term.unit, target, rank).double()
                    )
    return (y,)


def _low_rank_torch(given: Inputs) -> object:
    y = given["y"].clone()
    reference_low_rank.add_low_rank(y, given["x"], given["table"], given["segments"])
    return y


def _attention_inputs(draw: Draw) -> Inputs:
    small = draw.small
    heads, kv_heads, head_dim, slots = (6, 2, 16, 128) if small else (32, 8, 128, 32768)
    lengths = [1, draw.integer(30, 60), draw.integer(2, 30)] if small else [1024] * 16
    decode = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        decode[row, :length] = _random_slots(draw, slots, length)
    prefills, start = [], len(lengths)
    for rows, context in ((19, 19), (7, 40)) if small else ((256, 256),):
        prefills.append(PrefillSegment(start, start + rows, _random_slots(draw, slots, context).to(draw.device)))
        start += rows
    batch = AttentionBatch(
        len(lengths), decode.to(draw.device), torch.tensor(lengths, device=draw.device), tuple(prefills)
    )
    return {
        "query": draw.normal(start, heads, head_dim),
        "kv": draw.normal(slots, 2, kv_heads, head_dim),
        "batch": batch,
        "scale": head_dim**-0.5,
        "window": 24 if small and draw.integer(0, 2) else None,
    }


def _random_slots(draw: Draw, slots: int, length: int) -> Tensor:
    return torch.randperm(slots - 1, generator=draw.generator)[:length] + 1


def _attention_expected(given: Inputs) -> tuple[Tensor, ...]:
    kv = given["kv"].double()
    return (
        reference.paged_attention(
            given["query"].double(), kv[:, 0], kv[:, 1], given["batch"], scale=given["scale"], window=given["window"]
        ),
    )


def _attention_sdpa(given: Inputs) -> object:
    from hotshoe.kernels import sdpa_attention

    query, batch = given["query"], given["batch"]
    plan = sdpa_attention.plan_padded(batch, window=given["window"], device=query.device, dtype=query.dtype)
    return sdpa_attention.paged_attention(query, given["kv"], plan, scale=given["scale"])


def _upcast(given: Inputs) -> Inputs:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


_PACKED: list[tuple[Nf4Weight, Any]] = []
TASKS: Mapping[str, KernelTask] = {
    task.name: task
    for task in (
        KernelTask("rms_norm", _rms_norm_inputs, _rms_norm_expected, "torch: add, F.rms_norm", _rms_norm_torch),
        KernelTask(
            "silu_mul",
            _silu_mul_inputs,
            lambda given: (reference.silu_mul(given["gate_up"].double()),),
            "torch: F.silu, mul",
            _silu_mul_torch,
        ),
        KernelTask(
            "gelu_tanh_mul",
            _silu_mul_inputs,
            lambda given: (reference.gelu_tanh_mul(given["gate_up"].double()),),
            "torch: F.gelu, mul",
            _gelu_tanh_mul_torch,
        ),
        KernelTask(
            "rope_write_kv",
            _rope_inputs,
            lambda given: rope_write_kv(_upcast(given)),
            "torch: norm, rotate, index_put",
            rope_write_kv,
            writes=("kv",),
        ),
        KernelTask(
            "nf4_linear",
            _nf4_inputs,
            lambda given: (reference.nf4_linear(given["x"].double(), given["weight"]),),
            "bitsandbytes: matmul_4bit",
            _nf4_bitsandbytes,
        ),
        KernelTask(
            "dequantize_nf4",
            lambda draw: {"weight": _nf4_inputs(draw)["weight"]},
            lambda given: (reference.dequantize_nf4(given["weight"], torch.float64),),
            "bitsandbytes: dequantize_4bit",
            _dequantize_bitsandbytes,
        ),
        KernelTask(
            "scale_inputs",
            _scale_inputs_inputs,
            lambda given: scale_inputs(_upcast(given)),
            "torch: row by row",
            scale_inputs,
        ),
        KernelTask(
            "logit_stats",
            _finite_logit_stats_inputs,
            logit_stats,
            "torch: argmax, isfinite, exp, sum",
            logit_stats,
        ),
        KernelTask(
            "add_low_rank",
            _low_rank_inputs,
            low_rank_expected,
            "torch: two GEMMs a segment",
            _low_rank_torch,
            writes=("y",),
        ),
        KernelTask(
            "paged_attention",
            _attention_inputs,
            _attention_expected,
            "torch: gather and scaled_dot_product_attention",
            _attention_sdpa,
        ),
    )
}
