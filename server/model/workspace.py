"""What steps take of a GPU's memory beside weights, cache and adapters: what the cache has to leave to them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.server.adapters.fixed_adapter_slots import InputScales
from hotshoe.server.adapters.sites import SITE_OF_TARGET
from hotshoe.server.model.backends import Backend
from hotshoe.server.model.spec import ModelSpec
from hotshoe.server.model.step_graphs import BUCKETS

# Kernels as they are loaded, libraries' workspaces, and what a driver keeps of recorded steps: not ours to count.
_DRIVER_BYTES = 512 << 20
_LOGITS = 3  # as the head gives them, those of rows apart put behind them, and what drawing makes of them
_MASK_BYTES = 20  # of one row and one position, where torch's attention gets a mask

_SCORE_BYTES = 12  # of one head too, where scores have a cap, for which that attention has no argument


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Of an engine's steps."""

    rows: int
    logit_rows: int
    sequences: int
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Workspace:
    """Bytes on the device."""

    fixed: int
    per_token: int  # of the cache, where attention copies what it reads


def workspace(spec: ModelSpec, backend: Backend, limits: StepLimits) -> Workspace:
    """What the largest of an engine's steps takes at a time, with what recorded ones keep."""
    itemsize = backend.dtype.itemsize
    fixed = _DRIVER_BYTES + step_bytes(spec, rows=limits.rows, logit_rows=limits.logit_rows, itemsize=itemsize)
    if _attention(backend.ops) == "triton":
        return Workspace(fixed + _recorded_bytes(spec, limits), 0)
    copied = 2 * 2 * spec.num_kv_heads * spec.head_dim * itemsize  # of a layer, padded to twice as much
    of_position = _MASK_BYTES + (0 if spec.attention_cap is None else _SCORE_BYTES * spec.num_heads)
    return Workspace(fixed + of_position * limits.rows * spec.max_sequence_length, copied)


def step_bytes(spec: ModelSpec, *, rows: int, logit_rows: int, itemsize: int) -> int:
    """At least what a step of so many rows has in memory at once: one layer's intermediates, some of them in float32,
    its largest weight decoded, and logits.
    """
    widths: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for linear, shape in spec.linears():
        if linear.layer == 0:
            widths[SITE_OF_TARGET[linear.target]] += shape.out_features
            sizes[SITE_OF_TARGET[linear.target]] += shape.out_features * shape.in_features
    widest, largest = max(widths.values()), max(sizes.values())
    of_row = 4 * (8 * widest + 4 * spec.hidden_size)
    return rows * of_row + itemsize * largest + _LOGITS * 4 * logit_rows * spec.vocab_size


def _recorded_bytes(spec: ModelSpec, limits: StepLimits) -> int:
    """Of results and of block tables, which each recorded step keeps where they are."""
    rows = sum(bucket for bucket in BUCKETS if bucket < limits.sequences) + min(limits.sequences, BUCKETS[-1])
    kinds = 1 + len(InputScales)  # without adapters, and with those of each kind
    of_row = kinds * (spec.vocab_size + spec.hidden_size) + spec.max_sequence_length // limits.page_tokens
    return rows * 4 * of_row


def _attention(ops: Mapping[str, str] | None) -> str:
    return "sdpa" if ops is None else ops["attention"]
