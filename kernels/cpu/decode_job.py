"""A step as compiled code is handed it: numbers and addresses, and the few lookups that every part of it makes."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.jit import atomic_add, atomic_load, call_1, compiled, f32, i64, pause, to_bf16

END, LAYERS, HEAD = range(3)  # what a job asks for
UNIT = 16  # ranks of one unit of a low-rank table
QKV, ATTENTION_OUT, GATE_UP, DOWN = range(4)
NUM_SITES = 4
MAX_TARGETS = 3
NUM_NORMS = 6
INPUT_NORM, POST_NORM, Q_NORM, K_NORM, BEFORE_MLP, AFTER_MLP = range(NUM_NORMS)
SILU, GELU_TANH = range(2)  # what a gate goes through
MAX_RESIDUALS = 2  # blocks of a layer whose output is added to the residual: attention and MLP
COPY_WIDTH = 4 + MAX_TARGETS
BLOCK = 64  # inputs that share a scale
SPINS = 4_000  # pauses, some 40 µs, before a waiting thread lets another have its core

_NUMBERS = (
    "program num_layers hidden_size intermediate_size heads kv_heads head_dim num_rows max_context num_terms "
    "num_blocks shrunk_stride probabilities_stride tile_stride tile_blocks vocab_size num_logits barrier_base "
    "num_network_terms num_network_blocks network_stride num_segments prompt_depth swap_depth copy_depth "
    "num_turn_blocks fused rotary_dim gate"
)
_ADDRESSES = (
    # the model: [layers, LAYER_WIDTH] and, by site, where each thread's columns begin, [sites, team + 1]; int64
    "layers starts "
    # the rows: float32 [rows, hidden], [ropes, rows, rotary_dim / 2] twice; int64 [rows] three times, the last the row
    # of slots [sequences, max_context] that is the row's own sequence
    "hidden cos sin kv_slots lengths sequences slots "
    # scratch: of each thread, then shared; …16 are bfloat16
    "normed normed16 query probabilities totals product attended attended16 activated activated16 shrunk "
    # low-rank terms: int64 [terms] three times, float32 [terms], int64 [blocks + 1] where each block of them begins,
    # [adapters, layers, sites, targets], [adapters] whether their factors lie folded, [layers, sites, 2] addresses of
    # a and b, [layers, sites] whether any is there, scratch of each thread, and int64 [team, sites, 4]: which lines of
    # the tables to ask for ahead
    "term_rows term_units term_adapters weights term_blocks ranks folded tables site_terms low_rank_values fetches "
    # terms of narrow networks: int64 [terms] twice, float32 [terms], int64 [blocks + 1] as above; of each adapter int64
    # [layers, 2, NETWORK_WIDTH] and float32 [layers, 2]; int64 [layers, 2] whether any is there; scratch
    "network_rows network_adapters network_weights network_blocks networks network_gains network_places "
    "tapped network_shrunk "
    # int64 [rows] which of the segments, those of one stack, a row is of; −1: of none. Of these, int64
    # [segments, layers, sites] addresses of float32 vectors, [segments, layers, NUM_NORMS] of what is added to norms'
    # weights, and behind all layers [logits]; each 0 if there are none
    "row_segments input_scales output_scales bias_deltas norm_deltas head_norm_deltas "
    # int64 [layers, sites] whether inputs are turned, [segments, layers, sites, targets, 3] by which scale and which
    # matrices of what size, [rows] those of one stack together and [blocks + 1] where blocks of them begin
    # [layers, sites] whether outputs are swapped, [swap_depth, segments, layers, sites, 2] partners and gains
    # [prompt_depth, segments, layers, 3] gated prompts' keys, values and length, float32 without the 3 their gates
    # [layers, sites] whether products are taken again, [copy_depth, segments, layers, sites, COPY_WIDTH] how many
    # times, where their outputs' scales are, how many inputs and outputs, where their inputs' scales are; scratch
    "site_turns turns turn_rows turn_blocks site_swaps swaps prompts prompt_gates site_copies copies "
    "turned16 turn_scratch swapped copied16 copied copy_list "
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
_FLOATS = ("eps", "query_scale", "score_cap")  # the cap is 0 where there is none
JOB = np.dtype(
    [(name, np.int64) for name in (_NUMBERS + " " + _ADDRESSES).split()] + [(name, np.float32) for name in _FLOATS]
)
LAYER_FIELDS = ("input_norm", "mlp_norm", "qk_norm", "kv", "window", "rope", "attention_norm", "output_norm")
TILES, SCALES, BIAS = (len(LAYER_FIELDS) + NUM_SITES * i for i in range(3))  # from there, one of each site
LAYER_WIDTH = BIAS + NUM_SITES


@compiled
def site_width(j: Any, site: int) -> int:
    """Output columns of a site."""
    if site == QKV:
        return (j.heads + 2 * j.kv_heads) * j.head_dim
    return 2 * j.intermediate_size if site == GATE_UP else j.hidden_size


@compiled
def num_targets(j: Any, site: int) -> int:
    """How many targets share a site; one each where a family has fused them."""
    if j.fused:
        return 1
    return 3 if site == QKV else 2 if site == GATE_UP else 1


@compiled
def segment_of(j: Any, row: int) -> int:
    """Which segment a row is of; −1 if it is the base's alone."""
    return i64(j.row_segments + 8 * row, 1)[0] if j.row_segments else -1


@compiled
def flag_of(flags: int, layer: int, site: int) -> bool:
    """What int64 [layers, sites] say of a site; if there are none, no."""
    return flags != 0 and i64(flags + 8 * (layer * NUM_SITES + site), 1)[0] != 0


@compiled
def vector_of(table: int, j: Any, row: int, layer: int, site: int) -> int:
    """The address of a row's vector at a site, 0 if it has none."""
    segment = segment_of(j, row) if table else -1
    if segment < 0:
        return 0
    return i64(table + 8 * ((segment * j.num_layers + layer) * NUM_SITES + site), 1)[0]


@compiled
def norm_delta(j: Any, row: int, layer: int, norm: int) -> int:
    """The address of what a row adds to a norm's weights, 0 if nothing."""
    segment = segment_of(j, row) if j.norm_deltas else -1
    if segment < 0:
        return 0
    return i64(j.norm_deltas + 8 * ((segment * j.num_layers + layer) * NUM_NORMS + norm), 1)[0]


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
