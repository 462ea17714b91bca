"""Adapters that must be refused, each for its own reason and by the name of what is wrong."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from bad_configs import BAD_CONFIGS, KEY, WRITERS, A, B
from peft_adapters import adapter_files, write_lora
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_llama, tiny_qwen2

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.kind import ADAPTER_KINDS
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
from hotshoe.registry.validation import AdapterLimits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LLAMA = tiny_llama()
SHAPE = base_shape(LLAMA)


def refused(files: dict[str, Path], *, limits: AdapterLimits | None = None) -> InvalidAdapter:
    """Why inspection refuses them; lowering must refuse them for the same reason."""
    options = () if limits is None else (limits,)
    with pytest.raises(InvalidAdapter) as at_publish:
        inspect_adapter(files, SHAPE, *options)
    with pytest.raises(InvalidAdapter) as at_load:
        lower_adapter(files, ModelWeights(LLAMA), *options)
    assert str(at_load.value) == str(at_publish.value)
    assert type(at_load.value) is type(at_publish.value)
    assert str(at_publish.value).isprintable() and len(str(at_publish.value)) < 1_000
    return at_publish.value


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(directory: Path, edit) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize(
    "kind, change, field",
    [(kind, change, field) for kind, cases in BAD_CONFIGS.items() for change, field in cases],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_bad_config_is_refused_by_the_name_of_its_field(kind, change, field, tmp_path):
    WRITERS[kind](tmp_path, SHAPE)
    edit_config(tmp_path, **change)
    assert refused(adapter_files(tmp_path)).field == field


def test_an_unknown_kind_is_answered_with_the_known_ones(tmp_path):
    edit_config(write_lora(tmp_path, SHAPE), peft_type="SHADOW")
    error = refused(adapter_files(tmp_path))
    assert all(kind in str(error) for kind in ADAPTER_KINDS)


def rename(old: str, new: str):
    def edit(tensors):
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def swap_factors(tensors):
    tensors[A], tensors[B] = tensors[B], tensors[A]


# Each: a change of a LORA's tensors, the tensor that must be named, and whether the base is what does not fit.
BAD_TENSORS = {
    "lora_A without lora_B": (lambda tensors: tensors.pop(B), B, False),
    "lora_B without lora_A": (lambda tensors: tensors.pop(A), A, False),
    "a whole module missing": (lambda tensors: (tensors.pop(A), tensors.pop(B)), A, False),
    "lora_A and lora_B swapped": (swap_factors, A, True),
    "one tensor more": (
        lambda tensors: tensors.update({f"{KEY}.lora_C.weight": torch.ones(1)}),
        f"{KEY}.lora_C.weight",
    ),
    "a DoRA magnitude": (
        lambda tensors: tensors.update({f"{KEY}.lora_magnitude_vector": torch.ones(64)}),
        f"{KEY}.lora_magnitude_vector",
    ),
    "a bias that the config does not speak of": (
        lambda tensors: tensors.update({f"{KEY}.lora_B.bias": torch.ones(64)}),
        f"{KEY}.lora_B.bias",
    ),
    "a base bias that the config does not speak of": (
        lambda tensors: tensors.update({f"{KEY}.base_layer.bias": torch.ones(64)}),
        f"{KEY}.base_layer.bias",
    ),
    "lm_head of another vocabulary": (
        lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(130, 64)}),
        "base_model.model.lm_head.weight",
        True,
    ),
    "what modules_to_save would have kept": (
        lambda tensors: tensors.update({"base_model.model.lm_head.original_module.weight": torch.ones(128, 64)}),
        "base_model.model.lm_head.original_module.weight",
    ),
    "an embedding's factors": (
        lambda tensors: tensors.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(8, 128)}),
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ),
    "a norm's weight": (
        lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(64)}),
        "base_model.model.model.norm.weight",
        True,
    ),
    "a fused module": (rename("q_proj", "qkv_proj"), KEY.replace("q_proj", "qkv_proj") + ".lora_A.weight", True),
    "a layer that the base lacks": (rename("layers.1", "layers.2"), None, True),
    "another architecture's names": (rename("model.layers", "transformer.h"), None, True),
    "a doubled prefix": (rename("base_model.model.", "base_model.model.base_model.model."), None, True),
    "no prefix": (rename("base_model.model.", ""), None),
    "an adapter's name in the keys": (
        rename(".lora_A.weight", ".lora_A.mine.weight"),
        f"{KEY}.lora_A.weight",
    ),
    "lora_A of one dimension": (lambda tensors: tensors.update({A: torch.ones(8)}), A, True),
    "lora_A of three dimensions": (lambda tensors: tensors.update({A: torch.ones(8, 64, 1)}), A, True),
    "lora_A of no dimension": (lambda tensors: tensors.update({A: torch.ones(())}), A, True),
    "lora_B of one dimension": (lambda tensors: tensors.update({B: torch.ones(64)}), B, True),
    "lora_B of no dimension": (lambda tensors: tensors.update({B: torch.ones(())}), B, True),
    "lora_A of a rank that the config does not say": (lambda tensors: tensors.update({A: torch.ones(4, 64)}), A),
    "lora_B of a rank that the config does not say": (lambda tensors: tensors.update({B: torch.ones(64, 4)}), B),
    "NaN": (lambda tensors: tensors[B].__setitem__((3, 3), torch.nan), B),
    "infinity": (lambda tensors: tensors[A].__setitem__((0, 0), -torch.inf), A),
    "values that overflow": (lambda tensors: tensors[B].fill_(3e38), B),
    "integers": (lambda tensors: tensors.update({A: tensors[A].to(torch.int8)}), A),
    "integers of a size that is read": (lambda tensors: tensors.update({A: tensors[A].to(torch.int64)}), A),
    "booleans": (lambda tensors: tensors.update({A: tensors[A].bool()}), A),
    "complex numbers": (lambda tensors: tensors.update({A: tensors[A].to(torch.complex64)}), A),
    "8-bit floats": (lambda tensors: tensors.update({A: tensors[A].to(torch.float8_e4m3fn)}), A),
    "an empty tensor": (lambda tensors: tensors.update({A: torch.ones(0, 64)}), A),
    "a parent folder in a name": (rename("layers.0", "layers/../0"), None),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_by_name(name, tmp_path):
    edit, tensor, *is_the_base = BAD_TENSORS[name]
    edit_tensors(write_lora(tmp_path, SHAPE), edit)
    error = refused(adapter_files(tmp_path))
    assert error.field == tensor or (tensor is None and error.field in load_file(tmp_path / WEIGHTS))
    assert isinstance(error, IncompatibleAdapter) == (is_the_base == [True])


def test_a_fused_or_unknown_module_is_answered_with_the_targets_of_the_base(tmp_path):
    edit_tensors(write_lora(tmp_path, SHAPE), rename("q_proj", "qkv_proj"))
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in str(refused(adapter_files(tmp_path)))


def test_a_wrong_base_is_named_with_both_shapes(tmp_path):
    wide = base_shape(tiny_llama())
    files = adapter_files(write_lora(tmp_path, wide))
    narrow = LLAMA.config.__class__(
        **{**LLAMA.config.to_dict(), "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    )
    with pytest.raises(IncompatibleAdapter) as refusal:
        inspect_adapter(files, base_shape(type(LLAMA)(narrow), name="narrow"))
    assert refusal.value.field == A
    assert refusal.value.problem == (
        "found shape [8, 64], expected [any, 32] for model.layers.0.self_attn.q_proj of narrow"
    )


def test_an_adapter_with_biases_does_not_fit_a_base_without(tmp_path):
    qwen = tiny_qwen2()
    write_lora(tmp_path, qwen, bias="lora_only")
    biases = {f"base_model.model.{shape.module}.base_layer.bias" for shape in base_shape(qwen).linears.values()}

    def add_biases(tensors):
        for name in [name for name in tensors if name.endswith("lora_B.weight")]:
            bias = name.replace("lora_B.weight", "base_layer.bias")
            tensors[bias] = torch.ones(len(tensors[name]))

    edit_tensors(tmp_path, add_biases)
    assert inspect_adapter(adapter_files(tmp_path), base_shape(qwen)).num_tensors == 12
    assert refused(adapter_files(tmp_path)).field in biases


def spoiled(tensors: dict[str, torch.Tensor]):
    """Every single change to each tensor that must be refused: what it is, and the file's new tensors."""
    for name, tensor in tensors.items():
        rest = {other: value for other, value in tensors.items() if other != name}
        yield f"{name} missing", rest
        yield f"{name} doubled", {**tensors, f"{name}.copy": tensor.clone()}
        yield f"{name} transposed", {**rest, name: tensor.T.contiguous()}
        yield f"{name} flat", {**rest, name: tensor.flatten()}
        yield f"{name} without dimensions", {**rest, name: tensor.flatten()[0].clone()}
        for axis, size in enumerate(tensor.shape):
            yield f"{name} axis {axis} longer", {**rest, name: torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)}
            if size > 1:
                yield f"{name} axis {axis} shorter", {**rest, name: tensor.narrow(axis, 0, size - 1).contiguous()}
        for dtype in (torch.int8, torch.int32, torch.complex64, torch.uint8):
            yield f"{name} as {dtype}", {**rest, name: tensor.to(dtype)}
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = tensor.clone()
            bad.view(-1)[-1] = value
            yield f"{name} with {value}", {**rest, name: bad}


@pytest.mark.parametrize("kind", WRITERS)
def test_no_single_change_of_a_sound_adapters_tensors_is_accepted(kind, tmp_path):
    files = adapter_files(WRITERS[kind](tmp_path, SHAPE))
    tensors = load_file(tmp_path / WEIGHTS)
    inspect_adapter(files, SHAPE)
    count = 0
    for what, changed in spoiled(tensors):
        save_file(changed, tmp_path / WEIGHTS)
        try:
            inspect_adapter(files, SHAPE)
        except InvalidAdapter as error:
            assert error.field in tensors or error.field in changed or error.field == WEIGHTS, what
        else:
            raise AssertionError(f"accepted: {what}")
        count += 1
    assert count >= 14 * len(tensors)


class Canary:
    """What a pickle would run if anything read it."""

    def __reduce__(self):
        return os.system, ("exit 42",)


EVENTS: list[str] = []
IS_WATCHING = False


def watch(event: str, _: object) -> None:
    if IS_WATCHING and event in ("pickle.find_class", "exec", "compile", "import", "os.system", "subprocess.Popen"):
        EVENTS.append(event)


sys.addaudithook(watch)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "adapter_model.bin", "training_args.bin"])
def test_a_pickle_is_never_run(name, protocol, tmp_path):
    global IS_WATCHING
    write_lora(tmp_path, SHAPE)
    (tmp_path / name).write_bytes(pickle.dumps(Canary(), protocol))
    files = adapter_files(tmp_path)
    inspect_ok = name not in (WEIGHTS, CONFIG)
    EVENTS.clear()
    IS_WATCHING = True
    try:
        inspect_adapter(files, SHAPE)
        lower_adapter(files, ModelWeights(LLAMA))
    except InvalidAdapter as error:
        assert error.field == name and not inspect_ok
    else:
        assert inspect_ok
    finally:
        IS_WATCHING = False
    assert EVENTS == []


def test_a_pickled_adapter_is_told_why_it_is_not_read(tmp_path):
    write_lora(tmp_path, SHAPE)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    error = refused(adapter_files(tmp_path))
    assert error.field == WEIGHTS and "pickle" in error.problem


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(name, tmp_path):
    write_lora(tmp_path, SHAPE)
    files = adapter_files(tmp_path)
    assert refused({other: path for other, path in files.items() if other != name}).field == name
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert refused(files).field == name


def test_limits_are_on_rank_and_bytes(tmp_path):
    files = adapter_files(write_lora(tmp_path, SHAPE, rank=16))
    size = files[WEIGHTS].stat().st_size
    assert inspect_adapter(files, SHAPE, AdapterLimits(max_rank=16, max_bytes=size)).rank == 16
    assert refused(files, limits=AdapterLimits(max_rank=15)).field == "r"
    assert refused(files, limits=AdapterLimits(max_bytes=size - 1)).field == WEIGHTS


def test_other_files_of_the_directory_are_not_looked_at(tmp_path):
    files = adapter_files(write_lora(tmp_path, SHAPE))
    assert inspect_adapter({**files, "README.md": Path("/nowhere"), "../x": Path("/nowhere")}, SHAPE).rank == 8


def test_values_at_the_edge_of_a_dtype_are_accepted(tmp_path):
    for value in (65504.0, 6e-8, -65504.0):
        edit_tensors(
            write_lora(tmp_path, SHAPE, dtype=torch.float16),
            lambda tensors, value=value: [tensor.fill_(value) for tensor in tensors.values()],
        )
        for linear in lower_adapter(adapter_files(tmp_path), ModelWeights(LLAMA)).linears.values():
            assert all(tensor.isfinite().all() for tensor in linear.factors)
