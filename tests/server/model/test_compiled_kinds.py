"""What adapters have beyond factors and vectors, in compiled steps: the numbers of the operations, a row's own bits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from compiled_steps import decode_step, filled_cache, relative_error
from decoder_inputs import Chunk, decoder_input, paged_slots
from model_directories import write_tiny_model
from torch import Tensor

from hotshoe.kernels.cpu import nf4_linear
from hotshoe.registry.formats.activations import ACTIVATIONS, activation
from hotshoe.registry.formats.base import BaseShape, BlockId, LinearShape
from hotshoe.registry.formats.lowered import (
    Bottleneck,
    GatedPrompt,
    LoweredAdapter,
    LoweredLinear,
    OutputSwap,
    ScaledCopies,
)
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.model.loader import LoadedBase, load_base

pytest.importorskip("numba")
from hotshoe.kernels.cpu.activations import activate
from hotshoe.kernels.cpu.network_codes import ACTIVATION_CODES
from hotshoe.server.model.compiled_steps import compile_steps

pytestmark = pytest.mark.skipif(nf4_linear.kernel() is None, reason="needs AVX512-BF16")

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
CONTEXTS = (1, 17, 40, 5, 33, 64, 2)
Make = Callable[[BaseShape, torch.Generator], LoweredAdapter]


BASES = [("qwen3", 1), ("llama", 2), ("phi3", 3)]


@pytest.fixture(scope="module", params=BASES, ids=lambda param: f"{param[0]} on {param[1]}")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    (family, team), tmp_path = request.param, tmp_path_factory.mktemp("base")
    write_tiny_model(tmp_path / "model", family, hidden_size=128, num_attention_heads=4, head_dim=32)
    loaded = load_base(str(tmp_path / "model"), cache=tmp_path / "bases", device="cpu", backend="cpu_nf4")
    decoder = loaded.decoder
    decoder._compiled = compile_steps(
        decoder.spec, decoder._layers, norm=decoder._norm, head=decoder._head, threads=team
    )
    return loaded


def normal(generator: torch.Generator, *shape: int, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def bottlenecks(
    shape: BaseShape, generator: torch.Generator, *, taps: str = "output", width: int = 36, gain: float = 0.0
) -> LoweredAdapter:
    """Networks beside all but one of the blocks."""

    def network(phi: str) -> Bottleneck:
        down, up = normal(generator, width, shape.hidden_size), normal(generator, shape.hidden_size, width)
        biases = normal(generator, width), normal(generator, shape.hidden_size)
        return Bottleneck(taps, down, biases[0], phi, up, biases[1] if gain == 0 else None, gain)

    places = [BlockId(layer, name) for layer in range(shape.num_layers) for name in ("self_attn", "mlp")]
    return LoweredAdapter("houlsby", bottlenecks={place: network("swish") for place in places[1:]})


def norms(shape: BaseShape, generator: torch.Generator) -> LoweredAdapter:
    return LoweredAdapter("LN_TUNING", norms={norm: normal(generator, at.size) for norm, at in shape.norms.items()})


def gated_prompts(shape: BaseShape, generator: torch.Generator, *, length: int = 10) -> LoweredAdapter:
    """Prompts at all layers but the first."""

    def prompt() -> GatedPrompt:
        states = (normal(generator, length, shape.num_kv_heads, shape.head_dim, scale=1.0) for _ in range(2))
        return GatedPrompt(*states, torch.tensor([0.4]))

    return LoweredAdapter("ADAPTION_PROMPT", gated_prompts={layer: prompt() for layer in range(1, shape.num_layers)})


def linears(shape: BaseShape, make: Callable[[LinearShape], LoweredLinear], *targets: str) -> LoweredAdapter:
    return LoweredAdapter("LINEARS", {at: make(of) for at, of in shape.linears.items() if at.target in targets})


SIZES = {"q_proj": 4, "v_proj": 16, "o_proj": 64, "gate_up_proj": 16}


def turned(shape: BaseShape, generator: torch.Generator, *, targets: Sequence[str] = EVERY) -> LoweredAdapter:
    """Blocks of inputs turned, of several sizes; scaled too."""

    def linear(of: LinearShape) -> LoweredLinear:
        size = SIZES.get(of.module.rpartition(".")[2], 32)
        skew = normal(generator, of.in_features // size, size, size)
        return LoweredLinear(
            input_rotation=torch.linalg.matrix_exp(skew - skew.mT).contiguous(),
            input_scale=1 + normal(generator, of.in_features),
        )

    return linears(shape, linear, *targets)


def swapped(shape: BaseShape, generator: torch.Generator) -> LoweredAdapter:
    """Outputs in pairs, and low-rank factors beside."""

    def linear(of: LinearShape) -> LoweredLinear:
        partners = torch.arange(of.out_features).view(-1, 2).flip(1).flatten().contiguous()
        return LoweredLinear(
            a=normal(generator, 4, of.in_features),
            b=normal(generator, of.out_features, 4),
            output_scale=1 + normal(generator, of.out_features),
            output_swap=OutputSwap(partners, normal(generator, of.out_features)),
        )

    return linears(shape, linear, *EVERY)


def scaled_apart(shape: BaseShape, generator: torch.Generator) -> LoweredAdapter:
    """Inputs of the targets of a site scaled in several ways."""
    return linears(
        shape,
        lambda of: LoweredLinear(input_scale=1 + normal(generator, of.in_features)),
        "k_proj",
        "v_proj",
        "up_proj",
        "qkv_proj",
        "gate_up_proj",
    )


def copied(shape: BaseShape, generator: torch.Generator, *, copies: int) -> LoweredAdapter:
    """The product again, many times at some linears, and low-rank factors beside."""

    def linear(of: LinearShape) -> LoweredLinear:
        outputs, inputs = (normal(generator, copies, size) for size in (of.out_features, of.in_features))
        return LoweredLinear(
            a=normal(generator, 4, of.in_features),
            b=normal(generator, of.out_features, 4),
            output_scale=1 + normal(generator, of.out_features),
            copies=ScaledCopies(3 * outputs, 3 * inputs),
        )

    return linears(shape, linear, *(EVERY if copies < 9 else ("k_proj", "up_proj", "qkv_proj", "down_proj")))


KINDS: Mapping[str, tuple[Make, ...]] = {
    "norms": (norms,),
    "gated_prompts": (gated_prompts, partial(gated_prompts, length=3)),
    "rotations": (
        turned,
        swapped,
        partial(turned, targets=("q_proj", "v_proj", "qkv_proj", "down_proj")),
    ),
    "copies": (partial(copied, copies=2), partial(copied, copies=11)),
    "scales": (scaled_apart,),
    "bottlenecks": (
        bottlenecks,
        lambda shape, generator: bottlenecks(shape, generator, taps="residual", width=8),
        lambda shape, generator: bottlenecks(shape, generator, taps="sum", width=70, gain=-0.5),
    ),
}
STACKS = (((0, 1.0),), (), ((1, 0.5),), ((2, 1.0), (0, -0.5), (1, 1.0)), ((0, 1.0),), ((2, 0.7),), ((0, 1.0), (1, 1.0)))


def placed(base: LoadedBase, kind: str) -> AdapterSlots:
    """Three adapters of a kind, or of one way to be it."""
    generator, makes = torch.Generator().manual_seed(3), KINDS[kind]
    slots = AdapterSlots.for_base(base.weights.shape, num_slots=3, backend="cpu_nf4")
    for slot in range(3):
        slots.place(slot, makes[slot % len(makes)](base.weights.shape, generator))
    return slots


@pytest.mark.parametrize("kind", KINDS)
def test_rows_agree_with_the_operations(base: LoadedBase, kind: str) -> None:
    slots, count = placed(base, kind), len(CONTEXTS)
    prompt = Chunk(list(range(20, 33)), 3, paged_slots(64, first_page=40))
    decodes = [Chunk([7 + 13 * row], c - 1, paged_slots(64, first_page=1 + 4 * row)) for row, c in enumerate(CONTEXTS)]
    inputs = decoder_input([*decodes, prompt], all_logits=True)
    segments = [AdapterSegment(row, row + 1, stack) for row, stack in enumerate(STACKS)]
    batch = slots.batch([*segments, AdapterSegment(count, count + 13, ((0, 1.0), (1, 0.5)))], count + 13)
    plain, compiled = run(base, inputs, None), run(base, inputs, batch)
    steps, base.decoder._compiled = base.decoder._compiled, None
    operations = run(base, inputs, batch)
    base.decoder._compiled = steps
    assert kind in {*base.decoder.takes, "scales"}
    for row in range(count + 13):
        if row != 1:
            assert relative_error(plain[row], operations[row]) > 0.05  # it does something
        assert relative_error(compiled[row], operations[row]) < 0.02


def run(base: LoadedBase, inputs, batch) -> Tensor:
    """Logits, beside each row's own keys and values."""
    kv = filled_cache(base)
    logits = base.decoder.forward(inputs, kv, batch)
    written = [layer[inputs.kv_slots].flatten(1).float() for layer in kv.layers]
    return torch.cat([logits, *written], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_change_no_bit_of_a_row(base: LoadedBase, kind: str) -> None:
    slots, count = placed(base, kind), len(CONTEXTS)
    step = decode_step(CONTEXTS)
    together = hidden(base, step, slots.batch([AdapterSegment(r, r + 1, s) for r, s in enumerate(STACKS)], count))
    for row, stack in enumerate(STACKS):
        others = decode_step(tuple(CONTEXTS[row] if i == row else 3 + 5 * i for i in range(row + 1)), first_token=7)
        alone = slots.batch([AdapterSegment(row, row + 1, stack)], row + 1)
        assert torch.equal(hidden(base, others, alone)[row], together[row])


@torch.inference_mode()
def hidden(base: LoadedBase, inputs, batch) -> Tensor:
    """What the layers make of a step."""
    rows = base.decoder._embed(inputs)
    assert base.decoder._run_compiled(rows, inputs, filled_cache(base), batch)
    return rows


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torch_s(name: str) -> None:
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([-90.0, 90.0, 0.0, -0.0])))
    mine = x.clone().numpy()
    activate(ACTIVATION_CODES[name], mine)
    expected = activation(name)(x)
    assert (torch.from_numpy(mine) - expected).abs().max() < 2e-6 * expected.abs().max().clamp(min=1)
    poisoned = torch.full((16,), torch.nan).numpy()
    activate(ACTIVATION_CODES[name], poisoned)
    assert torch.from_numpy(poisoned).isnan().all()
