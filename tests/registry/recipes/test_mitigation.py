"""Intruders are shrunk as PEFT shrinks them, and the result is a LORA adapter that PEFT and we read alike."""

from pathlib import Path

import pytest
import torch
from canonical_adapters import ia3, prefix
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from peft_adapters import adapter_files, write_lora
from tiny_models import TARGETS, ModelWeights, decoder_linears, tiny_llama

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.registry.recipes.mitigation import mitigate
from hotshoe.registry.recipes.spectrum import leading_vectors


def written(files: dict[str, bytes], directory: Path) -> Path:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def test_updates_are_those_of_pefts_own_mitigation(tmp_path: Path) -> None:
    directory = write_lora(tmp_path / "loud", tiny_llama(), rank=4, scale=0.2, targets=TARGETS)
    base = ModelWeights(tiny_llama())
    lowered = lower_adapter(adapter_files(directory), base)
    found = mitigate(lowered, base, keep=0.3)
    assert found.shrunk > 10 and 0.5 < found.energy_kept < 1
    model = PeftModel.from_pretrained(tiny_llama(), directory)
    reduce_intruder_dimension(model, mitigation_lambda=0.3, logging_sink=None)
    for linear, (a, b) in found.updates.items():
        module = model.get_submodule(f"base_model.model.{base.shape.linears[linear].module}")
        expected = module.get_delta_weight("intruder_reduced").detach()
        assert torch.allclose(b @ a, expected, atol=1e-4), linear
        assert a.shape[0] == 4


def test_an_intruder_keeps_that_share_of_its_strength_before_the_rank_is_cut(tmp_path: Path) -> None:
    """At a rank that W itself does not exceed, nothing is cut."""
    base = ModelWeights(tiny_llama())
    lowered = lower_adapter(adapter_files(write_lora(tmp_path / "loud", base.shape, rank=64, scale=0.06)), base)
    [linear, *_] = lowered.linears
    part = lowered.linears[linear]
    weight = base.weight(linear)
    before = leading_vectors(weight, part.b @ part.a)
    found = mitigate(LoweredAdapter("LORA", {linear: part}), base, keep=0.25)
    assert found.shrunk == int(before.intruders.sum()) > 0 and found.energy_kept == pytest.approx(1)
    (a, b) = found.updates[linear]
    corrected = weight.double() + (b @ a).double()
    chosen = before.intruders
    strengths = ((before.left.T @ corrected) * before.right.T).sum(1)
    assert torch.allclose(strengths[chosen], 0.25 * before.values[chosen], rtol=1e-3)
    assert torch.allclose(strengths[~chosen], before.values[~chosen], rtol=1e-3)


def test_a_sound_adapter_stays_as_it_is_and_its_files_are_read_alike_by_peft(tmp_path: Path) -> None:
    model = tiny_llama()
    base = ModelWeights(model)
    source = write_lora(tmp_path / "sound", model, rank=4, scale=0.02, rank_pattern={"v_proj": 4})
    lowered = lower_adapter(adapter_files(source), base)
    found = mitigate(lowered, base, keep=0.5)
    assert found.shrunk == 0 and found.energy_kept == 1
    files = lora_files(found.updates, base.shape, base_name="tiny")
    assert files == lora_files(found.updates, base.shape, base_name="tiny")
    again = lower_adapter(adapter_files(written(files, tmp_path / "again")), base)
    for linear, part in again.linears.items():
        assert torch.equal(part.a, lowered.linears[linear].a) and torch.equal(part.b, lowered.linears[linear].b)
    merged = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again").merge_and_unload()
    for linear, module, layer in decoder_linears(merged):
        update = again.linears.get(linear)
        expected = base.weight(linear) + (update.b @ update.a if update else 0)
        assert torch.allclose(layer.weight, expected, atol=1e-6), module


def test_files_of_some_layers_and_several_ranks_name_each_module(tmp_path: Path) -> None:
    base = ModelWeights(tiny_llama())
    parts = lower_adapter(adapter_files(write_lora(tmp_path / "a", base.shape, rank=4)), base).linears
    others = lower_adapter(adapter_files(write_lora(tmp_path / "b", base.shape, rank=2)), base).linears
    [first, second, *_] = parts
    chosen = {linear: Factors(of[linear].a, of[linear].b) for linear, of in ((first, parts), (second, others))}
    files = lora_files(chosen, base.shape, base_name="tiny")
    again = lower_adapter(adapter_files(written(files, tmp_path / "again")), base)
    assert set(again.linears) == {first, second}
    assert (again.linears[first].rank, again.linears[second].rank) == (4, 2)
    assert torch.equal(again.linears[second].b, others[second].b)


@pytest.mark.parametrize(("adapter", "named"), [(ia3(), "scale"), (prefix(), "kv_prefix")], ids=["ia3", "prefix"])
def test_what_is_not_of_low_rank_is_refused_by_name(adapter: LoweredAdapter, named: str) -> None:
    with pytest.raises(InvalidAdapter, match=named):
        mitigate(adapter, ModelWeights(tiny_llama()), keep=0.5)
