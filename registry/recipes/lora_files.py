"""Low-rank updates as the files of a PEFT LORA adapter: lora_alpha is r, so that the scale is 1."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import TokenRows
from hotshoe.registry.formats.plan import MODULE_PREFIX
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.target_names import target_names

if TYPE_CHECKING:
    from torch import Tensor


def lora_files(
    updates: Mapping[LinearId, Factors],
    base: BaseShape,
    *,
    base_name: str,
    norms: "Mapping[LinearId, Tensor] | None" = None,
    whole: "Mapping[str, Tensor] | None" = None,
    added_biases: "Mapping[LinearId, Tensor] | None" = None,
    biases: "Mapping[LinearId, Tensor] | None" = None,
    token_rows: "Mapping[str, TokenRows] | None" = None,
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of updates, float32; equal updates give equal bytes.

    Args:
        base_name: what base_model_name_or_path says.
        norms: those of each linear's rows, [out_features], as use_dora has them; of all linears, or None.
        whole: weights of norms, embeddings and head in place of the base's, by module: PEFT's modules_to_save.
        added_biases: what lora_bias adds to the base's, [out_features]; of all linears, and not beside `norms`.
        biases: in place of the base's, of all linears that have one there: PEFT's lora_only.
        token_rows: of the embedding and the head, by module; of a head that is the embedding, only by that one's.
    """
    from safetensors.numpy import save

    tensors = {}
    for linear, (a, b) in updates.items():
        module = base.linears[linear].module
        tensors[f"{MODULE_PREFIX}{module}.lora_A.weight"] = a.float().contiguous().numpy()
        tensors[f"{MODULE_PREFIX}{module}.lora_B.weight"] = b.float().contiguous().numpy()
    for linear, row_norms in (norms or {}).items():
        name = f"{MODULE_PREFIX}{base.linears[linear].module}.lora_magnitude_vector"
        tensors[name] = row_norms.float().contiguous().numpy()
    for linear, bias in (added_biases or {}).items():
        tensors[f"{MODULE_PREFIX}{base.linears[linear].module}.lora_B.bias"] = bias.float().contiguous().numpy()
    for linear, bias in (biases or {}).items():
        tensors[f"{MODULE_PREFIX}{base.linears[linear].module}.base_layer.bias"] = bias.float().contiguous().numpy()
    for module, replaced in (token_rows or {}).items():
        name = f"{MODULE_PREFIX}{module}.token_adapter.trainable_tokens_delta"
        tensors[name] = replaced.rows.float().contiguous().numpy()
    for module, weight in (whole or {}).items():
        tensors[f"{MODULE_PREFIX}{module}.weight"] = weight.float().contiguous().numpy()
    ranks = {base.linears[linear].module: factors.a.shape[0] for linear, factors in updates.items()}
    rank = max(ranks.values())
    others = {module: other for module, other in sorted(ranks.items()) if other != rank}
    tokens = {module.split(".")[-1]: replaced.token_ids.tolist() for module, replaced in (token_rows or {}).items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "target_modules": target_names(updates, base),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "bias": "lora_only" if biases else "none",
        **({"lora_bias": True} if added_biases else {}),
        **({"use_dora": True} if norms else {}),
        **({"modules_to_save": sorted(whole)} if whole else {}),
        **({"trainable_token_indices": tokens} if tokens else {}),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}
