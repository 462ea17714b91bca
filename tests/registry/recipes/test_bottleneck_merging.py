"""A merge of bottlenecks gives o + Σ w f(t) beside every block, as each parent's own network is computed by itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from canonical import canonical_logits
from hub_adapters import hub_base, hub_files, write_bottleneck
from tiny_models import ModelWeights, tiny_llama
from torch import Tensor, nn
from transformers import PreTrainedModel

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowered import Bottleneck, LoweredAdapter
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merged_adapter import MergedAdapter, merged_adapter

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(7))
ACTIVATIONS = {"swish": nn.SiLU(), "silu": nn.SiLU(), "relu": nn.ReLU(), "sigmoid": nn.Sigmoid()}
Files = Mapping[str, Path]


def random(directory: Path, name: str, *, seed: int, **fields: object) -> Files:
    path = write_bottleneck(directory / name, tiny_llama(), seed=seed, **fields)  # type: ignore[arg-type]
    return {file.name: file for file in path.iterdir()}


def lowered(files: Files, base: Callable[[], PreTrainedModel] = tiny_llama) -> LoweredAdapter:
    return lower_adapter(files, ModelWeights(base()))


def merge(
    parents: Sequence[LoweredAdapter],
    weights: Sequence[float],
    method: str = "linear",
    *,
    base: Callable[[], PreTrainedModel] = tiny_llama,
    **parameters: str,
) -> MergedAdapter:
    asked = MergeParameters.parse(method, parameters)
    asked.check_parents(list(weights))
    return merged_adapter(parents, weights, asked, ModelWeights(base()), base_name="org/tiny")


def read_back(
    merged: MergedAdapter, directory: Path, base: Callable[[], PreTrainedModel] = tiny_llama
) -> LoweredAdapter:
    directory.mkdir()
    for name, data in merged.files.items():
        (directory / name).write_bytes(data)
    files = {name: directory / name for name in merged.files}
    assert inspect_adapter(files, ModelWeights(base()).shape).kind == "BOTTLENECK"
    return lowered(files, base)


@torch.no_grad()
def oracle(model: PreTrainedModel, parents: Sequence[LoweredAdapter], weights: Sequence[float]) -> Tensor:
    """The model's logits with every parent's networks beside its blocks, in float64."""
    model = model.double()
    for index, layer in enumerate(model.model.layers):
        seen: dict[str, Tensor] = {}
        layer.input_layernorm.register_forward_pre_hook(lambda _, x, seen=seen: seen.update(self_attn=x[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, x, seen=seen: seen.update(mlp=x[0]))
        for name in ("self_attn", "mlp"):
            networks = [
                (weight, network)
                for parent, weight in zip(parents, weights, strict=True)
                for block, network in parent.bottlenecks.items()
                if (block.layer, block.name) == (index, name)
            ]

            def add(_, __, output, networks=networks, seen=seen, name=name):
                whole = isinstance(output, tuple)
                own = output[0] if whole else output
                reads = {"output": own, "residual": seen[name], "sum": own + seen[name]}
                given = own + sum(weight * of(network, reads[network.taps]) for weight, network in networks)
                return (given, *output[1:]) if whole else given

            if networks:
                getattr(layer, name).register_forward_hook(add)
    return model(TOKENS).logits


def of(network: Bottleneck, x: Tensor) -> Tensor:
    inner = x @ network.down.double().T + (0 if network.down_bias is None else network.down_bias)
    return ACTIVATIONS[network.activation](inner) @ network.up.double().T + (
        0 if network.up_bias is None else network.up_bias
    )


CASES: Mapping[str, tuple[Mapping[str, object], ...]] = {
    "of one form": ({}, {}),
    "of other widths": ({"width": 4}, {"width": 16, "scaling": 2.0}, {"width": 8}),
    "beside other blocks": ({"output_adapter": False, "width": 16}, {"mh_adapter": False}),
    "of other layers": ({"leave_out": [0]}, {"leave_out": [1], "non_linearity": "silu"}),
    "of one layer": ({"leave_out": [1]}, {"leave_out": [1], "mh_adapter": False}),
    "whose activation of nothing is something": (
        {"non_linearity": "sigmoid"},
        {"non_linearity": "sigmoid", "width": 2},
    ),
    "that read the residual": ({"is_parallel": True}, {"is_parallel": True, "mh_adapter": False}),
    "that read both": ({"original_ln_before": True}, {"original_ln_before": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_merge_of_bottlenecks_is_the_sum_of_their_networks(case: str, tmp_path: Path) -> None:
    parents = []
    for seed, fields in enumerate(CASES[case]):
        files = random(tmp_path, f"parent-{seed}", seed=seed, **fields)
        parents.append(lowered(files))
    weights = [0.7, -0.4, 1.5][: len(parents)]
    merged = merge(parents, weights)
    assert merged.energy_kept == 1.0
    assert merged.recipe == {"op": "merge", "method": "linear", "normalize": False, "energy_kept": 1.0}
    again = read_back(merged, tmp_path / "merged")
    base = tiny_llama()
    ours = canonical_logits(base, again, TOKENS)
    plain = base(TOKENS).logits
    assert (ours - oracle(tiny_llama(), parents, weights)).abs().max() <= 2e-5
    assert (ours - plain).abs().max() > 0.1
    assert merge(parents, weights).files == merged.files


@pytest.mark.parametrize("case", ["houlsby", "compacter"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_package_s_own_adapters_merge(family: str, case: str, tmp_path: Path) -> None:
    def base() -> PreTrainedModel:
        return hub_base(family)

    parent = lowered(hub_files(family, case), base)
    doubled = merge([parent, parent], [0.25, 0.5], base=base, normalize="true")
    ours = canonical_logits(base(), read_back(doubled, tmp_path / "merged", base), TOKENS)
    assert (ours - canonical_logits(base(), parent, TOKENS)).abs().max() <= 2e-5


def test_cat_is_linear_by_another_name(tmp_path: Path) -> None:
    parents = [lowered(random(tmp_path, f"{seed}", seed=seed)) for seed in range(2)]
    assert merge(parents, [1.0, 2.0], "cat").files == merge(parents, [1.0, 2.0]).files


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"non_linearity": "relu"}, "bottlenecks of one activation, found swish and relu; a request can stack these"),
        ({"is_parallel": True}, "bottlenecks of networks that read the same, found output and residual"),
        ({"original_ln_after": False}, "bottlenecks of networks that leave the residual as it is"),
    ],
)
def test_bottlenecks_that_are_no_one_network_are_refused_by_name(
    other: dict[str, object], says: str, tmp_path: Path
) -> None:
    first, second = random(tmp_path, "a", seed=1), random(tmp_path, "b", seed=2, **other)
    with pytest.raises(InvalidAdapter, match=f"sources: expected {says}"):
        merge([lowered(first), lowered(second)], [1.0, 1.0])


def test_other_methods_and_other_parents_are_refused_by_name(tmp_path: Path) -> None:
    parents = [lowered(random(tmp_path, f"{seed}", seed=seed)) for seed in range(2)]
    with pytest.raises(InvalidAdapter, match="method: expected cat or linear for bottlenecks, found 'ties'"):
        merge(parents, [1.0, 1.0], "ties")
    with pytest.raises(InvalidAdapter, match="parameters.rank: expected 0 for bottlenecks, found 4"):
        merge(parents, [1.0, 1.0], rank="4")
