"""Adapters in the format of AdapterHub's package: those that `bottleneck_fixtures` made with it, and random ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter.safetensors"
FIXTURES = Path(__file__).parent / "adapterhub"
AVERAGE = {"houlsby": 1.25, "houlsby-relu": -0.25}  # of which "average" is, over llama
CASES = [(path.parents[1].name, path.parent.name) for path in sorted(FIXTURES.glob(f"*/*/{WEIGHTS_FILE}"))]
FAMILIES = sorted({family for family, _ in CASES})


def hub_base(family: str) -> PreTrainedModel:
    """The base of a family's cases, in float32."""
    return AutoModelForCausalLM.from_pretrained(FIXTURES / family / "base", dtype=torch.float32).eval()


def hub_files(family: str, case: str) -> dict[str, Path]:
    return {path.name: path for path in (FIXTURES / family / case).iterdir()}


def hub_logits(family: str) -> dict[str, Tensor]:
    """What the package computes, by case; "base" alone, and the "tokens" that it was given."""
    return load_file(FIXTURES / family / "logits.safetensors")


def write_bottleneck(
    directory: Path, model: PreTrainedModel, *, width: int = 8, seed: int = 0, scale: float = 0.3, **fields: object
) -> Path:
    """A random Houlsby adapter, or another by its config's fields, as the package would save it."""
    config = {
        "mh_adapter": True,
        "output_adapter": True,
        "reduction_factor": model.config.hidden_size // width,
        "non_linearity": "swish",
        **fields,
    }
    generator, tensors = torch.Generator().manual_seed(seed), {}
    hidden = model.config.hidden_size
    for layer in range(model.config.num_hidden_layers):
        for flag, place in (("mh_adapter", "attention_adapters"), ("output_adapter", "output_adapters")):
            module = f"model.layers.{layer}.{place}.adapters.random"
            for part, shape in (("adapter_down.0", (width, hidden)), ("adapter_up", (hidden, width))):
                if config[flag] and layer not in config.get("leave_out", []):
                    tensors[f"{module}.{part}.weight"] = scale * torch.randn(shape, generator=generator)
                    tensors[f"{module}.{part}.bias"] = scale * torch.randn(shape[0], generator=generator)
    outer = {
        "config": config,
        "hidden_size": hidden,
        "model_class": type(model).__name__,
        "model_name": "tiny",
        "model_type": model.config.model_type,
        "name": "random",
        "version": "adapters.1.3.0",
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS_FILE)
    (directory / CONFIG_FILE).write_text(json.dumps(outer))
    return directory
