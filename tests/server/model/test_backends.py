"""Every backend against the reference one; rows that nothing in a batch can reach; adapters at every site."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from decoder_inputs import PAGE, Chunk, decoder_input, paged_slots
from model_directories import write_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from hotshoe.kernels import reference
from hotshoe.kernels.cpu import nf4_linear
from hotshoe.registry.formats.base import BlockId, NormId
from hotshoe.registry.formats.lowered import Bottleneck, GatedPrompt
from hotshoe.server.adapters.placed_adapter import SiteCopies
from hotshoe.server.adapters.sites import SITES
from hotshoe.server.model import backends
from hotshoe.server.model.backends import Backend, choose_backend, cuda_backend
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.quantize import write_quantized

needs_kernel = pytest.mark.skipif(nf4_linear.kernel() is None, reason="needs AVX512-BF16")
NAMES = ["reference", pytest.param("cpu_nf4", marks=needs_kernel), "cpu_dense", "cuda"]
PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]


def backend_of(name: str) -> Backend:
    return cuda_backend(torch.device("cpu")) if name == "cuda" else choose_backend("cpu", name)


def read(directory: Path, name: str) -> Decoder:
    checkpoint = DirectoryCheckpoint(directory)
    return read_decoder(checkpoint, spec_from_config(checkpoint.config), backend_of(name))


@pytest.fixture(params=["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"])
def quantized(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny NF4 base, wide enough for every kernel's tiles."""
    fields = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4}
    if request.param == "qwen2":
        del fields["head_dim"]
    write_tiny_model(tmp_path / "model", request.param, **fields)
    checkpoint = DirectoryCheckpoint(tmp_path / "model")
    (tmp_path / "nf4").mkdir()
    write_quantized(checkpoint, spec_from_config(checkpoint.config), tmp_path / "nf4")
    return tmp_path / "nf4"


def two_steps(decoder: Decoder) -> Tensor:
    """Logits of a chunked prompt beside a decoding sequence."""
    kv = decoder.new_kv_cache(16 * PAGE)
    slots = [paged_slots(32, first_page=1, stride=2), paged_slots(32, first_page=2, stride=2)]
    first = decoder.forward(decoder_input([Chunk(PROMPT[:6], 0, slots[0]), Chunk(PROMPT, 0, slots[1])]), kv)
    step = [Chunk([77], len(PROMPT), slots[1]), Chunk(PROMPT[6:], 6, slots[0])]
    return torch.cat((first, decoder.forward(decoder_input(step), kv)))


@pytest.mark.parametrize("name", NAMES[1:])
def test_logits_are_close_to_the_reference(name: str, quantized: Path) -> None:
    expected = two_steps(read(quantized, "reference"))
    actual = two_steps(read(quantized, name))
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() / expected.norm() < 2e-2


def test_logits_are_transformers_own_of_the_weights_that_are_served(quantized: Path) -> None:
    model, checkpoint = AutoModelForCausalLM.from_pretrained(quantized.parent / "model"), DirectoryCheckpoint(quantized)
    decoder = read(quantized, "reference")
    parts = dict(model.named_modules())
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        for _, linear in decoder.spec.linears():
            parts[linear.module].weight.copy_(reference.dequantize_nf4(checkpoint.linear(linear.module)))
        if decoder.spec.scaled_embedding:  # as transformers has it where the embedding is in bfloat16
            parts["model.embed_tokens"].embed_scale.copy_(parts["model.embed_tokens"].embed_scale.bfloat16())
        expected = model(torch.tensor([PROMPT])).logits[0]
    inputs = decoder_input([Chunk(PROMPT, 0, paged_slots(16, first_page=1))], all_logits=True)
    actual = decoder.forward(inputs, decoder.new_kv_cache(64))
    assert (actual - expected).norm() / expected.norm() < 1e-5


@needs_kernel
def test_linears_that_fill_no_tile_are_dense(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", hidden_size=96, intermediate_size=80, num_attention_heads=4, head_dim=20)
    checkpoint = DirectoryCheckpoint(tmp_path / "model")
    (tmp_path / "nf4").mkdir()
    write_quantized(checkpoint, spec_from_config(checkpoint.config), tmp_path / "nf4")
    expected = two_steps(read(tmp_path / "nf4", "reference"))
    for name in ("cpu_nf4", "cuda"):
        actual = two_steps(read(tmp_path / "nf4", name))
        assert (actual - expected).norm() / expected.norm() < 2e-2


@needs_kernel
@pytest.mark.parametrize(("intermediate", "compiled"), [(128, True), (80, False)])
def test_fused_steps_are_compiled_where_gate_and_up_fill_whole_tiles(
    intermediate: int, compiled: bool, tmp_path: Path
) -> None:
    """80 columns of each end within a tile of 32, though the 160 of both do not."""
    write_tiny_model(tmp_path / "model", "phi3", hidden_size=128, intermediate_size=intermediate)
    checkpoint = DirectoryCheckpoint(tmp_path / "model")
    (tmp_path / "nf4").mkdir()
    write_quantized(checkpoint, spec_from_config(checkpoint.config), tmp_path / "nf4")
    decoder = read(tmp_path / "nf4", "cpu_nf4")
    assert (decoder._compiled is not None and decoder._compiled.layers is not None) is compiled
    expected = two_steps(read(tmp_path / "nf4", "reference"))
    assert (two_steps(decoder) - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_bit_identical_whatever_its_neighbours(name: str, quantized: Path) -> None:
    decoder = read(quantized, name)
    slots = [paged_slots(40, first_page=1 + i, stride=3) for i in range(3)]

    def ours(others: Sequence[int], start: int) -> Tensor:
        kv = decoder.new_kv_cache(16 * PAGE)
        prompts = [PROMPT, *([token] * start for token in others)]
        decoder.forward(decoder_input([Chunk(p, 0, s) for p, s in zip(prompts, slots, strict=True)]), kv)
        steps = [Chunk([9], len(prompt), s) for prompt, s in zip(prompts, slots, strict=True)]
        return decoder.forward(decoder_input(steps), kv)[0]

    assert torch.equal(ours([3, 4], 11), ours([90, 250], 11))


@pytest.mark.parametrize("name", NAMES)
def test_a_neighbour_full_of_nan_harms_only_itself(name: str, quantized: Path) -> None:
    decoder = read(quantized, name)
    slots = [paged_slots(40, first_page=1 + i, stride=3) for i in range(3)]

    def logits(poison: float) -> Tensor:
        kv = decoder.new_kv_cache(16 * PAGE)
        prefix = torch.full((2, 5, decoder.spec.num_kv_heads, decoder.spec.head_dim), poison)
        kv.write(slots[1][:5], prefix, prefix)
        chunks = [Chunk([7], 0, slots[0]), Chunk([8], 5, slots[1]), Chunk(PROMPT, 0, slots[2])]
        return decoder.forward(decoder_input(chunks), kv)

    sound, poisoned = logits(0.5), logits(float("nan"))
    assert bool(poisoned[1].isnan().all())
    assert torch.equal(poisoned[[0, 2]], sound[[0, 2]])


def test_given_embeddings_take_the_place_of_tokens(quantized: Path) -> None:
    decoder = read(quantized, "reference")
    chunk = Chunk(PROMPT, 0, paged_slots(16, first_page=1))
    inputs = decoder_input([chunk], all_logits=True)
    expected = decoder.forward(inputs, decoder.new_kv_cache(64))
    rows = torch.tensor([2, 5])
    wrong = inputs.token_ids.clone()
    wrong[rows] = 0
    given = decoder._embedding[inputs.token_ids[rows]].float() * decoder.embedding_scale
    replaced = type(inputs)(wrong, inputs.positions, inputs.kv_slots, inputs.attention, inputs.logit_rows, rows, given)
    assert torch.equal(decoder.forward(replaced, decoder.new_kv_cache(64)), expected)


class _OneAdapter:
    """Scales and adds at every site, in the order in which the decoder is to apply them."""

    def __init__(self, targets_apart: bool) -> None:
        self.targets_apart = targets_apart

    def scaled_inputs(self, layer: int, site: str, x: Tensor) -> Sequence[Tensor]:
        count = len(SITES[site][0]) if self.targets_apart else 1
        return [x * (1 + target + layer) for target in range(count)]

    def scale_output(self, layer: int, site: str, y: Tensor) -> None:
        y *= 2

    def copies(self, layer: int, site: str) -> Sequence[tuple[int, int, SiteCopies, float]]:
        return ()

    def add_delta(self, layer: int, site: str, x: Tensor, y: Tensor) -> None:
        y += x.sum(dim=1, keepdim=True)

    def gated_prompts(self, layer: int) -> Sequence[tuple[int, int, GatedPrompt, float]]:
        return ()

    def bottlenecks(self, block: BlockId) -> Sequence[tuple[int, int, Bottleneck, float]]:
        return ()

    def norm_rows(self, norm: NormId) -> Sequence[tuple[int, int, Tensor]]:
        return ()


@pytest.mark.parametrize("targets_apart", [False, True])
def test_a_site_scales_then_adds_the_bias_then_the_delta(targets_apart: bool, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    adapter = _OneAdapter(targets_apart)
    decoder = read(tmp_path, "reference")

    def hook(layer: int, target: int) -> object:
        def adapted(module: torch.nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
            (x,) = args
            scaled = x * (1 + (target if targets_apart else 0) + layer)
            return 2 * (scaled @ module.weight.T) + module.bias + x.sum(dim=-1, keepdim=True)

        return adapted

    for index, layer in enumerate(model.model.layers):
        for targets, *_ in SITES.values():
            for target, name in enumerate(targets):
                block = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
                getattr(block, name).register_forward_hook(hook(index, target))
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    inputs = decoder_input([Chunk(PROMPT, 0, paged_slots(16, first_page=1))], all_logits=True)
    actual = decoder.forward(inputs, decoder.new_kv_cache(64), adapter)
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_inputs_that_disagree_are_refused(quantized: Path) -> None:
    decoder = read(quantized, "reference")
    inputs = decoder_input([Chunk(PROMPT, 0, paged_slots(16, first_page=1))])
    short = type(inputs)(inputs.token_ids[1:], *(getattr(inputs, n) for n in inputs.__slots__[1:]))
    with pytest.raises(ValueError, match="positions, kv_slots"):
        decoder.forward(short, decoder.new_kv_cache(64))


def test_a_cpu_without_the_kernel_computes_in_float32(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = two_steps(read(quantized, "reference"))
    monkeypatch.setattr(backends.cpu_nf4, "kernel", lambda: None)
    actual = two_steps(read(quantized, "cpu_dense"))
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    ("device", "name", "named"),
    [
        ("tpu", "auto", "device: expected auto, cpu or cuda, not tpu"),
        ("cpu", "fast", "backend: expected auto or one of reference, cpu_nf4, cpu_dense, cuda, triton, not fast"),
        ("cpu", "cuda", "backend: cuda does not run on device cpu"),
        ("cuda", "reference", "backend: reference does not run on device cuda"),
    ],
)
def test_a_backend_that_is_not_here_is_refused_by_name(device: str, name: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        choose_backend(device, name)


def test_a_gpu_that_torch_cannot_use_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    monkeypatch.setattr(torch.cuda, "init", fail)
    for device, name in (("cuda", "auto"), ("auto", "triton"), ("auto", "cuda")):
        with pytest.raises(ValueError, match=r"cuda is not available .*: The NVIDIA driver .* \(found version .*\)\.$"):
            choose_backend(device, name)


def test_where_triton_cannot_run_its_reason_is_told_and_the_libraries_kernels_take_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capability = [8, 6]
    monkeypatch.setattr(backends, "_check_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: tuple(capability))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends.shutil, "which", lambda name: name or None)
    monkeypatch.setattr(backends.sysconfig, "get_path", lambda *names: str(tmp_path))
    (tmp_path / "Python.h").touch()
    trials = iter([None, *[PermissionError(13, "Permission denied", "/.triton")] * 5])
    monkeypatch.setattr(backends, "_try_triton", lambda: _raise(next(trials)))
    assert backends.triton_lacks() is None
    assert "the first one fails: PermissionError: [Errno 13]" in _refusal(caplog)
    capability[:] = 7, 5
    assert "compute capability 8.0 or more, for bfloat16; Tesla T4 has 7.5" in _refusal(caplog)
    (tmp_path / "Python.h").unlink()
    assert "C headers" in _refusal(caplog)
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    assert "a C compiler" in _refusal(caplog)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _refusal(caplog: pytest.LogCaptureFixture) -> str:
    """What a choice of triton fails with; left to itself, the server warns of the same and takes cuda."""
    with pytest.raises(ValueError, match="backend: triton needs") as refused:
        choose_backend("auto", "triton")
    assert choose_backend("auto", "auto").name == "cuda"
    warning, lacking = caplog.records[-1].getMessage(), str(backends.triton_lacks())
    assert lacking in warning and lacking in str(refused.value)
    return warning


def test_without_the_kernel_the_weights_are_dequantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.cpu_nf4, "kernel", lambda: None)
    assert choose_backend("cpu", "auto").name == "cpu_dense"
    with pytest.raises(ValueError, match="AVX512-BF16"):
        choose_backend("cpu", "cpu_nf4")
