"""What every engine is given: the base as GGUF and as a Hugging Face directory of the same values, and adapters.

The adapters are random LoRAs, half of rank 8 and half of rank 16, on all seven linears of every layer: what they say is
of no use, what they cost is what a trained one costs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotshoe.clients.recipes.quantized_base import BASE_MODEL, find_smollm2_gguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # of what this module writes; part of the folder's name
RANKS = (8, 16)  # take turns
B_DEVIATION = 0.03  # of the entries of B: logits move by some units, as they do after training
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Materials:
    """Where they lie; `directory` is named after what they are made of."""

    directory: Path
    gguf: Path
    base: Path
    adapters: Mapping[str, Path]


def make_materials(cache: Path, num_adapters: int) -> Materials:
    """Makes what is missing under `cache`; equal inputs give equal bytes. The base takes half a minute, once.

    Raises:
        FileNotFoundError: the package with the base is not installed.
    """
    gguf = find_smollm2_gguf()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    directory = cache / "materials" / f"v{VERSION}-{digest[:12]}"
    base = _written(directory / "base", partial(write_base, gguf))
    config = json.loads((base / "config.json").read_text())
    adapters = {}
    for index in range(num_adapters):
        name = adapter_name(index)
        adapters[name] = _written(directory / "adapters" / name, partial(write_adapter, config, index))
    return Materials(directory, gguf, base, adapters)


def adapter_name(index: int) -> str:
    """ "lora-03-r16": the number tells adapters apart, the rank what they cost."""
    return f"lora-{index:02}-r{_rank(index)}"


def _rank(index: int) -> int:
    return RANKS[index % len(RANKS)]


def write_base(gguf: Path, directory: Path) -> None:
    """Writes a GGUF file's model as a Hugging Face directory in bfloat16, such as old and new readers understand."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # Not save_pretrained: it refuses what came from GGUF, though the values are plain by now.
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}  # tied
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    # Readers of before transformers 5 know rope_theta only, and would take 10000 without a word.
    config |= {"rope_theta": model.config.rope_parameters["rope_theta"], "tie_word_embeddings": True}
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    config |= {"architectures": ["LlamaForCausalLM"], "_name_or_path": BASE_MODEL}
    _write_json(directory / "config.json", config)
    ends = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", ends)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    _write_json(directory / "tokenizer_config.json", tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_adapter(config: Mapping[str, Any], index: int, directory: Path) -> None:
    """Writes the random LoRA number `index` for a Llama of this config, in PEFT's layout, in float32."""
    import numpy
    from safetensors.numpy import save_file

    random, rank = numpy.random.default_rng(index), _rank(index)
    tensors: dict[str, NDArray[Any]] = {}
    for module, (out_features, in_features) in linear_shapes(config).items():
        bound = in_features**-0.5  # as PEFT begins
        lora_a = random.uniform(-bound, bound, (rank, in_features)).astype(numpy.float32)
        lora_b = random.normal(0.0, B_DEVIATION, (out_features, rank)).astype(numpy.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"] = lora_a
        tensors[f"base_model.model.{module}.lora_B.weight"] = lora_b
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_MODEL,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }
    _write_json(directory / "adapter_config.json", fields)


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) features of every linear of a Llama's layers, by module name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    of_one_layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{layer}.{name}": shape for layer in layers for name, shape in of_one_layer.items()}


def _written(directory: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written under another name first, so that a half-written one is never taken."""
    if not directory.exists():
        unfinished = directory.with_name(f"partial-{directory.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished)
        unfinished.rename(directory)
    return directory


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
