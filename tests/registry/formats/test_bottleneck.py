"""AdapterHub's bottleneck adapters: the logits that its package gives, and refusals by name of all that is not its."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from canonical import canonical_logits
from hub_adapters import (
    CASES,
    CONFIG_FILE,
    FAMILIES,
    FIXTURES,
    WEIGHTS_FILE,
    hub_base,
    hub_files,
    hub_logits,
    write_bottleneck,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_adapters import write_lora
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_phi3
from torch import Tensor

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.adapterhub import REFUSED_METHODS
from hotshoe.registry.formats.kind import ADAPTERHUB_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

BASES = {family: hub_base(family) for family in FAMILIES}
LOGITS = {family: hub_logits(family) for family in BASES}
INTERFACE_FILE = "adapter_interface.json"
PLACE = "model.layers.0.output_adapters.adapters"


@pytest.mark.parametrize(("family", "case"), CASES)
def test_the_canonical_form_gives_the_package_s_logits(family: str, case: str) -> None:
    known = LOGITS[family]
    lowered = lower_adapter(hub_files(family, case), ModelWeights(BASES[family]))
    ours = canonical_logits(BASES[family], lowered, known["tokens"])
    assert (ours - known[case]).abs().max() <= 5 * ADAPTERHUB_KINDS[lowered.kind].error
    assert (ours - known["base"]).abs().max() > 0.1  # or the adapter is not to be seen


@pytest.mark.parametrize(("family", "case"), CASES)
def test_what_inspection_says_is_what_lowering_gives(family: str, case: str) -> None:
    weights = ModelWeights(BASES[family])
    summary = inspect_adapter(hub_files(family, case), weights.shape)
    lowered = lower_adapter(hub_files(family, case), weights)
    assert summary.kind == lowered.kind == "BOTTLENECK"
    assert (summary.rank, summary.virtual_tokens, summary.target_modules) == (0, 0, ())
    assert (lowered.rank, lowered.virtual_tokens, dict(lowered.linears)) == (0, 0, {})
    for tensor in lowered.tensors():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.isfinite().all()


def refused(directory: Path, family: str = "llama") -> InvalidAdapter:
    """Why inspection refuses it; lowering must refuse it for the same reason."""
    files = {path.name: path for path in directory.iterdir()}
    with pytest.raises(InvalidAdapter) as at_publish:
        inspect_adapter(files, base_shape(BASES[family]))
    with pytest.raises(InvalidAdapter) as at_load:
        lower_adapter(files, ModelWeights(BASES[family]))
    assert str(at_load.value) == str(at_publish.value)
    assert str(at_publish.value).isprintable() and len(str(at_publish.value)) < 1_000
    return at_publish.value


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """A case's directory, to be changed."""

    def copy(case: str, family: str = "llama") -> Path:
        return Path(shutil.copytree(FIXTURES / family / case, tmp_path / case))

    return copy


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


OUTER = [
    ({"name": "another"}, f"{PLACE}.another.adapter_down.0.weight"),
    ({"name": "a.b"}, "name"),
    ({"name": ""}, "name"),
    ({"name": None}, "name"),
    ({"model_type": "mistral"}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"model_class": "LlamaAdapterModel"}, "model_class"),
    ({"model_class": "LlamaForSequenceClassification"}, "model_class"),
    ({"model_name": ["tiny"]}, "model_name"),
    ({"hidden_size": 64}, "hidden_size"),
    ({"hidden_size": "32"}, "hidden_size"),
    ({"version": "0.1"}, "version"),
    ({"version": None}, "version"),
    ({"label2id": {}}, "label2id"),
    ({"config": None}, "peft_type"),
    ({"peft_type": "LORA"}, "adapter_model.safetensors"),
    ({"task_type": "CAUSAL_LM"}, "task_type"),
]
INNER = [
    ({"use_gating": True}, "use_gating"),
    ({"ln_before": True}, "ln_before"),
    ({"ln_after": True}, "ln_after"),
    ({"inv_adapter": "nice"}, "inv_adapter"),
    ({"cross_adapter": True}, "cross_adapter"),
    ({"residual_before_ln": "post_add"}, "residual_before_ln"),
    ({"residual_before_ln": 1}, "residual_before_ln"),
    ({"scaling": "learned"}, f"{PLACE}.pfeiffer.scaling"),
    ({"scaling": 4}, "scaling"),
    ({"scaling": "4.0"}, "scaling"),
    ({"scaling": 1e300}, "scaling"),
    ({"non_linearity": "prelu"}, "non_linearity"),
    ({"non_linearity": None}, "non_linearity"),
    ({"reduction_factor": 2}, f"{PLACE}.pfeiffer.adapter_down.0.weight"),
    ({"reduction_factor": 0}, "reduction_factor"),
    ({"reduction_factor": -4}, "reduction_factor"),
    ({"reduction_factor": 1e-9}, "reduction_factor"),
    ({"reduction_factor": "4"}, "reduction_factor"),
    ({"reduction_factor": {"0": 4}}, "reduction_factor"),
    ({"reduction_factor": {"default": "4"}}, "reduction_factor"),
    ({"mh_adapter": True}, "model.layers.0.attention_adapters.adapters.pfeiffer.adapter_down.0.weight"),
    ({"output_adapter": False}, "mh_adapter"),
    ({"output_adapter": 1}, "output_adapter"),
    ({"leave_out": [0, 1]}, "leave_out"),
    ({"leave_out": [1]}, "model.layers.1.output_adapters.adapters.pfeiffer.adapter_down.0.bias"),
    ({"leave_out": "0"}, "leave_out"),
    ({"phm_layer": True}, f"{PLACE}.pfeiffer.adapter_down.0.W_left"),
    ({"phm_layer": True, "phm_dim": 3}, "phm_dim"),
    ({"phm_layer": True, "shared_W_phm": True}, "shared_W_phm"),
    ({"is_parallel": None}, "is_parallel"),
    ({"dropout": 2}, "dropout"),
    ({"next_years_feature": False}, "next_years_feature"),
    ({"a\nb": 1}, "'config.a\\nb'"),
    *(({"architecture": method}, "architecture") for method in REFUSED_METHODS),
]


@pytest.mark.parametrize(("change", "field"), OUTER)
def test_a_changed_field_is_refused_by_its_name(change: dict, field: str, copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer")
    edit(directory / CONFIG_FILE, lambda document: document.update(change))
    assert refused(directory).field == field


@pytest.mark.parametrize(("change", "field"), INNER)
def test_a_changed_field_of_the_method_is_refused_by_its_name(
    change: dict, field: str, copied: Callable[..., Path]
) -> None:
    directory = copied("pfeiffer")
    edit(directory / CONFIG_FILE, lambda document: document["config"].update(change))
    assert refused(directory).field in (field, f"config.{field}")


@pytest.mark.parametrize("field", ["mh_adapter", "output_adapter", "reduction_factor", "non_linearity"])
def test_what_has_no_default_must_be_there(field: str, copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer")
    edit(directory / CONFIG_FILE, lambda document: document["config"].pop(field))
    assert refused(directory).field == f"config.{field}"


def test_what_the_package_has_a_default_for_may_be_missing(copied: Callable[..., Path]) -> None:
    directory = copied("houlsby")
    needed = ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity")
    edit(
        directory / CONFIG_FILE,
        lambda document: document.update(config={name: document["config"][name] for name in needed}),
    )
    files = {path.name: path for path in directory.iterdir()}
    lowered = lower_adapter(files, ModelWeights(BASES["llama"]))
    ours = canonical_logits(BASES["llama"], lowered, LOGITS["llama"]["tokens"])
    assert (ours - LOGITS["llama"]["houlsby"]).abs().max() <= 1e-5


@pytest.mark.parametrize("method", REFUSED_METHODS)
def test_another_method_is_refused_with_the_reason(method: str, copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer")
    edit(directory / CONFIG_FILE, lambda document: document.update(config={"architecture": method}))
    assert re.search(re.escape(REFUSED_METHODS[method]), str(refused(directory)))


SOUND = json.loads((FIXTURES / "llama" / "compacter" / CONFIG_FILE).read_text())
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, 2, 4, -1, 0.0, 0.5, 4.0, 1e-300, 1e9, 1 << 70, [], {}, [0], [0, 1], "", "a"]
    ),
    st.sampled_from(["learned", "channel", "relu", "tanh", "post_add", "lora", "compacter", "llama", "default"]),
    st.dictionaries(st.sampled_from(["0", "1", "default", "x"]), st.sampled_from([4, 2.5, 0, "4", None]), max_size=3),
)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    inner=st.dictionaries(st.sampled_from(sorted(SOUND["config"])), VALUES, max_size=3),
    outer=st.dictionaries(st.sampled_from(sorted(SOUND)), VALUES, max_size=1),
)
def test_whatever_a_config_says_it_is_refused_or_lowered(tmp_path_factory, inner: dict, outer: dict) -> None:
    config = {**SOUND, "config": {**SOUND["config"], **inner}, **outer}
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(config))
    files, weights = {**hub_files("llama", "compacter"), CONFIG_FILE: path}, ModelWeights(BASES["llama"])
    try:
        lowered = lower_adapter(files, weights)
    except InvalidAdapter as refusal:
        with pytest.raises(InvalidAdapter) as at_publish:
            inspect_adapter(files, weights.shape)
        assert str(at_publish.value) == str(refusal)
        return
    assert inspect_adapter(files, weights.shape).kind == lowered.kind
    assert all(tensor.isfinite().all() for tensor in lowered.tensors())


TENSORS: dict[str, tuple[str, str, Callable[[Tensor], Tensor | None]]] = {
    "missing": ("pfeiffer", f"{PLACE}.pfeiffer.adapter_up.bias", lambda tensor: None),
    "of another shape": ("pfeiffer", f"{PLACE}.pfeiffer.adapter_up.weight", lambda tensor: tensor.T.contiguous()),
    "of integers": ("pfeiffer", f"{PLACE}.pfeiffer.adapter_up.bias", lambda tensor: tensor.long()),
    "not finite": ("pfeiffer", f"{PLACE}.pfeiffer.adapter_up.bias", lambda tensor: tensor * float("nan")),
    "surplus": ("pfeiffer", f"{PLACE}.pfeiffer.gate.weight", lambda tensor: torch.ones(1)),
    "of another adapter": ("pfeiffer", f"{PLACE}.other.adapter_up.bias", lambda tensor: torch.ones(32)),
    "a scaling that is none": ("pfeiffer", f"{PLACE}.pfeiffer.scaling", lambda tensor: torch.ones(1)),
    "a rule missing": ("compacter", "model.shared_parameters.compacter.phm_rule", lambda tensor: None),
    "a rule of another size": (
        "compacter",
        "model.shared_parameters.compacter.phm_rule",
        lambda tensor: tensor[:2].clone(),
    ),
    "a part of another rank": (
        "compacter",
        f"{PLACE}.compacter.adapter_down.0.W_left",
        lambda tensor: tensor.repeat(1, 1, 2),
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_a_changed_tensor_is_refused_by_its_name(what: str, copied: Callable[..., Path]) -> None:
    case, name, change = TENSORS[what]
    directory = copied(case)
    tensors = load_file(directory / WEIGHTS_FILE)
    new = change(tensors.pop(name, torch.zeros(1)))
    save_file(tensors if new is None else {**tensors, name: new}, directory / WEIGHTS_FILE)
    assert refused(directory).field == name


def test_matrices_that_would_be_large_are_refused_before_they_are_made(copied: Callable[..., Path]) -> None:
    directory = copied("compacter")
    edit(directory / CONFIG_FILE, lambda document: document["config"].update(reduction_factor=0.001, phm_dim=1))
    assert "adapter_down.0.W_left" in refused(directory).field  # in the file they are large themselves
    shape = base_shape(BASES["llama"])
    object.__setattr__(shape, "hidden_size", 1 << 16)
    edit(directory / CONFIG_FILE, lambda document: document.update(hidden_size=1 << 16))
    edit(directory / CONFIG_FILE, lambda document: document["config"].update(reduction_factor=1))
    with pytest.raises(InvalidAdapter, match="reduction_factor: makes matrices of more than"):
        inspect_adapter({path.name: path for path in directory.iterdir()}, shape)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layer_pre_ffn": None}, "interface.layer_pre_ffn"),
        ({"layer_pre_self_attn": "self_attn"}, "interface.layer_pre_self_attn"),
        ({"layer_ln_1": "post_attention_layernorm"}, "interface.layer_ln_1"),
        ({"layer_output_proj": "mlp"}, "interface.layer_output_proj"),
        ({"attn_o_proj": "v_proj"}, "interface.attn_o_proj"),
        ({"model_layers": None}, "interface.model_layers"),
        ({"layer_of_tomorrow": None}, "interface.layer_of_tomorrow"),
    ],
)
def test_networks_at_other_places_are_refused(change: dict, field: str, copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer", "qwen2")
    edit(directory / INTERFACE_FILE, lambda document: document["interface"].update(change))
    assert refused(directory, "qwen2").field == field


def test_an_interface_of_another_model_or_form_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer", "qwen2")
    for change in ({"model_type": "llama"}, {"more": 1}, {"interface": None}):
        shutil.copy(FIXTURES / "qwen2" / "pfeiffer" / INTERFACE_FILE, directory / INTERFACE_FILE)
        edit(directory / INTERFACE_FILE, lambda document, change=change: document.update(change))
        assert refused(directory, "qwen2").field in (INTERFACE_FILE, "interface")


def test_a_family_that_the_package_knows_by_an_interface_only_needs_one(tmp_path: Path) -> None:
    model, of_qwen2 = tiny_phi3(), FIXTURES / "qwen2" / "pfeiffer" / INTERFACE_FILE
    files = {path.name: path for path in write_bottleneck(tmp_path, model).iterdir()}
    with pytest.raises(InvalidAdapter, match="adapter_interface.json: missing: the package knows phi3 by an interface"):
        inspect_adapter(files, base_shape(model))
    (tmp_path / INTERFACE_FILE).write_text(json.dumps(json.loads(of_qwen2.read_text()) | {"model_type": "phi3"}))
    assert inspect_adapter(files | {INTERFACE_FILE: tmp_path / INTERFACE_FILE}, base_shape(model)).kind == "BOTTLENECK"


def test_where_the_model_adds_the_residual_an_adapter_cannot_leave_it_out(copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer", "qwen2")
    edit(directory / CONFIG_FILE, lambda document: document["config"].update(original_ln_after=False))
    assert refused(directory, "qwen2").field == "config.original_ln_after"


def test_of_another_base_it_is_incompatible(copied: Callable[..., Path]) -> None:
    assert isinstance(refused(copied("pfeiffer"), "qwen2"), IncompatibleAdapter)


def test_a_pickle_is_not_read(copied: Callable[..., Path]) -> None:
    directory = copied("pfeiffer")
    (directory / WEIGHTS_FILE).rename(directory / "pytorch_adapter.bin")
    assert "pytorch_adapter.bin is a pickle" in str(refused(directory))


def test_each_config_wants_its_own_package_s_weights(copied: Callable[..., Path], tmp_path: Path) -> None:
    directory = copied("pfeiffer")
    (directory / WEIGHTS_FILE).rename(directory / "adapter_model.safetensors")
    assert refused(directory).field == WEIGHTS_FILE
    directory = write_lora(tmp_path / "lora", BASES["llama"])
    (directory / "adapter_model.safetensors").rename(directory / WEIGHTS_FILE)
    assert refused(directory).field == "adapter_model.safetensors"


def test_an_exact_kind_is_not_approximated() -> None:
    with pytest.raises(InvalidAdapter, match="approximate_rank: expected 0"):
        inspect_adapter(hub_files("llama", "pfeiffer"), base_shape(BASES["llama"]), approximate_rank=4)
