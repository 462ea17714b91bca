"""A step as compiled code is handed it: numbers and addresses, and the few lookups that every part of it makes."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.jit import atomic_add, atomic_load, call_1, compiled, f32, i64, pause, to_bf16

END, LAYERS, HEAD = range(3)  # what a job asks for
UNIT = 16  # ranks of one unit of a low-rank table
QKV, ATTENTION_OUT, GATE_UP, DOWN = range(4)
NUM_SITES = 4
MAX_TARGETS = 3
MAX_RESIDUALS = 2  # blocks of a layer whose output is added to the residual: attention and MLP
BLOCK = 64  # inputs that share a scale
SPINS = 4_000  # pauses, some 40 µs, before a waiting thread lets another have its core

_NUMBERS = (
    "program num_layers hidden_size intermediate_size heads kv_heads head_dim num_rows max_context num_terms "
    "num_blocks shrunk_stride probabilities_stride tile_stride tile_blocks vocab_size num_logits barrier_base "
    "num_network_terms num_network_blocks network_stride"
)
_ADDRESSES = (
    # the model: [layers, LAYER_WIDTH] and, by site, where each thread's columns begin, [sites, team + 1]; int64
    "layers starts "
    # the rows: float32 [rows, hidden], [rows, head_dim / 2] twice; int64 [rows] three times, the last the row of
    # slots [sequences, max_context] that is the row's own sequence
    "hidden cos sin kv_slots lengths sequences slots "
    # scratch: of each thread, then shared; …16 are bfloat16
    "normed normed16 query probabilities totals product attended attended16 activated activated16 shrunk "
    # low-rank terms: int64 [terms] three times, float32 [terms], int64 [blocks + 1] where each block of them begins,
    # [adapters, layers, sites, targets], [layers, sites, 2] addresses of a and b, [layers, sites] whether any is there,
    # scratch of each thread, and int64 [team, sites, 4]: which lines of the tables to ask for ahead
    "term_rows term_units term_adapters weights term_blocks ranks tables site_terms low_rank_values fetches "
    # terms of narrow networks: int64 [terms] twice, float32 [terms], int64 [blocks + 1] as above; of each adapter int64
    # [layers, 2, NETWORK_WIDTH] and float32 [layers, 2]; int64 [layers, 2] whether any is there; scratch
    "network_rows network_adapters network_weights network_blocks networks network_gains network_places "
    "tapped network_shrunk "
    # addresses of float32 vectors, int64 [rows, layers, sites]; 0 if no row has any
    "input_scales output_scales bias_deltas "
    # the head: its tiles, its rows in bfloat16, what their rounding can be off by, and the final norm
    "head head_rows head_errors final_norm "
    # int64 [logits] the rows that are asked about; scratch: their inputs in float32 [logits, hidden], the same as two
    # int8, int32 [logits, blocks] and float32 [logits] of those, [logits, tiles] the largest logits, [logits] how
    # close to the largest one must be looked at again
    "logit_rows head_inputs high low head_offsets head_scales largest margins "
    # float32 [logits, vocab_size], int64 [logits] the likeliest token and whether all of a row is finite
    "logits likeliest finite "
    # matrix tiles: their configuration, 0 where the CPU has none, and scratch memory of each thread
    "tile_config tile_scratch "
    # a C function, and where the team meets
    "yield_core barrier"
)
JOB = np.dtype([(name, np.int64) for name in (_NUMBERS + " " + _ADDRESSES).split()] + [("eps", np.float32)])
LAYER_FIELDS = ("input_norm", "post_norm", "qk_norm", "kv", "window")
TILES, SCALES, BIAS = (len(LAYER_FIELDS) + NUM_SITES * i for i in range(3))  # from there, one of each site
LAYER_WIDTH = BIAS + NUM_SITES


@compiled
def site_width(j: Any, site: int) -> int:
    """Output columns of a site."""
    if site == QKV:
        return (j.heads + 2 * j.kv_heads) * j.head_dim
    return 2 * j.intermediate_size if site == GATE_UP else j.hidden_size


@compiled
def vector_of(table: int, j: Any, row: int, layer: int, site: int) -> int:
    """The address of a row's vector at a site, 0 if it has none."""
    if table == 0:
        return 0
    return i64(table + 8 * ((row * j.num_layers + layer) * NUM_SITES + site), 1)[0]


@compiled
def round_row(x: Any, out: Any, scale: int) -> None:
    """out = x ∘ the vector at `scale`, if that is not 0, in bfloat16."""
    if scale == 0:
        for i in range(x.size):
            out[i] = to_bf16(x[i])
    else:
        s = f32(scale, x.size)
        for i in range(x.size):
            out[i] = to_bf16(x[i] * s[i])


@compiled
def meet(j: Any, team: int, meeting: int) -> int:
    """Waits until all threads are here; gives the number of the next meeting."""
    meeting += team
    atomic_add(j.barrier, 1)
    spins = 0
    while atomic_load(j.barrier) < meeting:
        pause()
        spins += 1
        if spins > SPINS:
            call_1(j.yield_core, (0,))
    return meeting
