"""Scales of inputs and outputs as the files of a PEFT IA3 adapter."""

import json

from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.plan import MODULE_PREFIX
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE
from hotshoe.registry.recipes.scale_merging import Scales
from hotshoe.registry.recipes.target_names import module_names, target_names


def ia3_files(scales: Scales, base: BaseShape, *, base_name: str) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of scales, float32; equal scales give equal bytes.

    `base_name` is what base_model_name_or_path says.
    """
    from safetensors.numpy import save

    tensors = {}
    for found, shape in ((scales.inputs, (1, -1)), (scales.outputs, (-1, 1))):
        for linear, scale in found.items():
            name = f"{MODULE_PREFIX}{base.linears[linear].module}.ia3_l"
            tensors[name] = scale.float().contiguous().numpy().reshape(shape)
    targets, feedforward = _module_lists(scales, base)
    config = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "target_modules": targets,
        "feedforward_modules": feedforward,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}


def _module_lists(scales: Scales, base: BaseShape) -> tuple[list[str], list[str]]:
    """target_modules and feedforward_modules, of which the second must be out of the first."""
    chosen = [*scales.inputs, *scales.outputs]
    targets, feedforward = target_names(chosen, base), target_names(scales.inputs, base)
    # PEFT asks only for a name's end, so that gate_up_proj would be an up_proj.
    taken = any(base.linears[linear].module.endswith(tuple(feedforward)) for linear in scales.outputs)
    if taken or not set(targets).issuperset(feedforward):
        return module_names(chosen, base), module_names(scales.inputs, base)
    return targets, feedforward
