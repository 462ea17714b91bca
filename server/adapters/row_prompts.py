"""The gated prompts that a step's rows see, as compiled code reads them."""

from collections.abc import Sequence

import numpy as np

from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.term_blocks import Segment


def prompt_addresses(segments: Sequence[Segment], num_layers: int, kept: KeptArrays) -> dict[str, int]:
    """The fields of a job that say what each segment sees at each layer, one prompt behind the other."""
    found = [
        (segment, layer, prompt, weight)
        for segment, (*_, stack) in enumerate(segments)
        for adapter, weight in stack
        for layer, prompt in adapter.gated_prompts.items()
    ]
    if not found:
        return {"prompt_depth": 0}
    seen = np.zeros((len(segments), num_layers), np.int64)
    places = []
    for segment, layer, *_ in found:
        places.append((seen[segment, layer], segment, layer))
        seen[segment, layer] += 1
    depth = int(seen.max())
    prompts, gates = np.zeros((depth, *seen.shape, 3), np.int64), np.zeros((depth, *seen.shape), np.float32)
    for place, (*_, prompt, weight) in zip(places, found, strict=True):
        prompts[place] = kept.address_of(prompt.keys), kept.address_of(prompt.values), prompt.keys.shape[0]
        gates[place] = weight * float(prompt.gate)
    return {"prompt_depth": depth, "prompts": kept.address(prompts), "prompt_gates": kept.address(gates, np.float32)}
