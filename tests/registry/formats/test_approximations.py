"""Updates of full rank: PEFT's own at their full rank, the nearest at a lower one, and never unless asked for."""

from functools import partial

import numpy as np
import pytest
import torch
from canonical import canonical_logits
from peft import LoraConfig, PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import DENSE_CONFIGS, for_fused, one_of_each_kind
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, decoder_linears, tiny_llama, tiny_phi3, tiny_qwen2

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
from hotshoe.registry.formats.principal_factors import principal_factors
from hotshoe.registry.validation import AdapterLimits

TOKENS = torch.randint(0, 128, (3, 11), generator=torch.Generator().manual_seed(7))
MODELS = {"llama with biases": lambda: tiny_llama(bias=True), "qwen2": tiny_qwen2, "phi3": tiny_phi3}
FULL = 96


@torch.no_grad()
def peft_logits(model, directory):
    return PeftModel.from_pretrained(model, directory).eval()(input_ids=TOKENS).logits


@torch.no_grad()
def peft_updates(model, directory):
    """What PEFT adds to each weight, seen from outside: the linear's answers to unit vectors, less the bare ones."""
    before = {linear: part.weight.clone() for linear, _, part in decoder_linears(model)}
    wrapped = PeftModel.from_pretrained(model, directory).eval()
    updates = {}
    for linear, weight in before.items():
        part = dict(wrapped.named_modules())[f"base_model.model.model.layers.{linear.layer}." + _path(linear.target)]
        eye = torch.eye(weight.shape[1])[None]
        updates[linear] = (part(eye) - part(torch.zeros_like(eye)))[0].T - weight
    return updates


def _path(target):
    return f"{'self_attn' if target in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{target}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DENSE_CONFIGS)
def test_at_full_rank_the_logits_are_pefts(name, model, tmp_path):
    config = DENSE_CONFIGS[name]()
    save_peft(tmp_path, MODELS[model](), for_fused(config) if model == "phi3" else config)
    base = MODELS[model]()
    lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(base), approximate_rank=FULL)
    assert lowered.rank == 64  # the shorter side of the largest linear
    assert lowered.approximation.energy == pytest.approx(1, abs=1e-12)
    ours, plain = canonical_logits(base, lowered, TOKENS), base(TOKENS).logits
    theirs = peft_logits(base, tmp_path)
    assert (ours - theirs).abs().max() <= 1e-4  # RANDLORA's sums round most, to 2e-5 here, on other CPUs otherwise
    assert (theirs - plain).abs().max() > 0.02  # or the adapter is not to be seen


@pytest.mark.parametrize("name", DENSE_CONFIGS)
def test_at_a_low_rank_the_energy_is_what_numpy_s_decomposition_says(name, tmp_path):
    save_peft(tmp_path, tiny_qwen2(), DENSE_CONFIGS[name]())
    base = tiny_qwen2()
    lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(base), approximate_rank=5)
    shares, kept, total = {}, 0.0, 0.0
    for linear, update in peft_updates(base, tmp_path).items():
        squares = np.linalg.svd(update.double().numpy(), compute_uv=False) ** 2
        shares[str(linear)] = squares[:5].sum() / squares.sum()
        kept, total = kept + squares[:5].sum(), total + squares.sum()
        part = lowered.linears[linear]
        assert part.rank == 5
        left_out = (update.double() - part.b.double() @ part.a.double()).square().sum().item()
        assert left_out == pytest.approx(squares[5:].sum(), rel=1e-4), linear  # no other of rank 5 is nearer
    found = lowered.approximation
    assert found.rank == 5
    assert found.energy == pytest.approx(kept / total, abs=1e-5)
    assert found.least_energy == pytest.approx(min(shares.values()), abs=1e-5)
    assert shares[found.least_linear] == pytest.approx(found.least_energy, abs=1e-5)
    assert 0 < found.least_energy < found.energy < 0.999


def test_what_depends_on_the_base_s_weights_follows_them(tmp_path):
    save_peft(tmp_path, tiny_llama(), DENSE_CONFIGS["hira"]())
    first, same, other = (
        lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama(seed=seed)), approximate_rank=5)
        for seed in (0, 0, 1)
    )
    assert all(one.equal(two) for one, two in zip(first.tensors(), same.tensors(), strict=True))
    assert first.approximation == same.approximation
    assert not all(one.equal(two) for one, two in zip(first.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("config", one_of_each_kind(DENSE_CONFIGS).values(), ids=lambda config: config.peft_type.value)
def test_nothing_is_approximated_unasked(config, tmp_path):
    save_peft(tmp_path, tiny_llama(), config)
    weights = ModelWeights(tiny_llama())
    for check in (
        lambda: inspect_adapter(adapter_files(tmp_path), weights.shape),
        lambda: lower_adapter(adapter_files(tmp_path), weights),
    ):
        with pytest.raises(InvalidAdapter, match=r"full rank.*--approximate-rank R"):
            check()


def test_what_is_served_exactly_is_not_approximated(tmp_path):
    save_peft(tmp_path, tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(InvalidAdapter, match="approximate_rank.*LORA is served exactly"):
        inspect_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()).shape, approximate_rank=4)


def test_a_rank_above_the_limit_is_refused_by_its_name(tmp_path):
    save_peft(tmp_path, tiny_llama(), DENSE_CONFIGS["hira"]())
    limits = AdapterLimits(max_rank=16)
    with pytest.raises(InvalidAdapter, match="approximate_rank: found rank 17, expected at most 16"):
        inspect_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()).shape, limits, approximate_rank=17)


def test_inspection_says_the_rank_that_lowering_gives(tmp_path):
    save_peft(tmp_path, tiny_llama(), DENSE_CONFIGS["c3a"]())
    weights = ModelWeights(tiny_llama())
    for rank in (3, 40, 200):
        summary = inspect_adapter(adapter_files(tmp_path), weights.shape, approximate_rank=rank)
        assert summary.kind == "C3A"
        assert summary.rank == lower_adapter(adapter_files(tmp_path), weights, approximate_rank=rank).rank


def test_randlora_whose_shared_matrices_differ_is_refused(tmp_path):
    save_peft(tmp_path, tiny_llama(), DENSE_CONFIGS["randlora"]())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.mlp.up_proj.randlora_A"][0] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidAdapter, match=r"layers.1.mlp.up_proj.randlora_A"):
        lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()), approximate_rank=4)


@pytest.mark.parametrize(
    ("name", "suffix", "place"),
    [("shira", "shira_indices", (0, 3)), ("shira", "shira_indices", (1, 3)), ("supertuning", "supertuning_indices", 3)],
)
@pytest.mark.parametrize("value", [-1, 64, 64 * 96])
def test_places_outside_of_the_weight_are_refused_at_publish(name, suffix, place, value, tmp_path):
    save_peft(tmp_path, tiny_llama(), DENSE_CONFIGS[name]())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensor = f"base_model.model.model.layers.1.self_attn.k_proj.{suffix}"  # of 32 outputs and 64 inputs
    tensors[tensor][place] = value
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    check = partial(inspect_adapter, adapter_files(tmp_path), ModelWeights(tiny_llama()).shape, approximate_rank=4)
    if name == "supertuning" and value == 64:  # counted along the rows, there is such a place
        check()
        return
    with pytest.raises(InvalidAdapter, match=f"{tensor}: expected integers from 0 to .*, found {value}$"):
        check()


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
def test_all_factors_together_give_the_matrix_back(shape):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    matrix *= 10.0 ** torch.linspace(0, -9, shape[0], dtype=torch.float64)[:, None]  # far beyond what squares resolve
    factors = principal_factors(matrix)
    assert (factors.b @ factors.a - matrix).abs().max() <= 1e-14
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert np.allclose(factors.squares[:8].sqrt().numpy(), values[:8], rtol=1e-9)
    for share in (0.5, 0.9, 0.999):
        rank = factors.rank_of(share)
        assert factors.energy(rank) >= share > factors.energy(rank - 1)
    assert factors.rank_of(1.0) <= min(shape)


def test_an_update_of_nothing_keeps_all_of_it():
    factors = principal_factors(torch.zeros(6, 9))
    a, b = factors.cut(2)
    assert not a.any() and not b.any() and factors.energy(2) == 1 and factors.rank_of(0.9) == 0
