"""Low-rank updates as the files of a PEFT LORA adapter: lora_alpha is r, so that the scale is 1."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import TokenRows
from hotshoe.registry.formats.plan import MODULE_PREFIX
from hotshoe.registry.formats.target_modules import EMBEDDING
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
    token_updates: Mapping[str, Factors] | None = None,
    base_layers: "Mapping[str, Tensor] | None" = None,
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of updates, float32; equal updates give equal bytes.

    Args:
        base_name: what base_model_name_or_path says.
        norms: those of each linear's rows, [out_features], as use_dora has them; of all linears, or None.
        whole: weights of norms, embeddings and head in place of the base's, by module: PEFT's modules_to_save.
        added_biases: what lora_bias adds to the base's, [out_features]; of all linears, and not beside `norms`.
        biases: in place of the base's, of all linears that have one there: PEFT's lora_only.
        token_rows: of the embedding and the head, by module; of a head that is the embedding, only by that one's.
        token_updates: of the same, [vocab_size, hidden_size]; not beside `norms`, `added_biases` or `token_rows`.
        base_layers: whole weights in place of the base's, to which `token_updates` are added.
    """
    from safetensors.numpy import save

    modules = {linear: shape.module for linear, shape in base.linears.items()}
    parts = {f"{modules[linear]}.lora_A.weight": factors.a for linear, factors in updates.items()}
    parts |= {f"{modules[linear]}.lora_B.weight": factors.b for linear, factors in updates.items()}
    parts |= {f"{modules[linear]}.lora_magnitude_vector": found for linear, found in (norms or {}).items()}
    parts |= {f"{modules[linear]}.lora_B.bias": bias for linear, bias in (added_biases or {}).items()}
    parts |= {f"{modules[linear]}.base_layer.bias": bias for linear, bias in (biases or {}).items()}
    parts |= {f"{name}.token_adapter.trainable_tokens_delta": kept.rows for name, kept in (token_rows or {}).items()}
    parts |= {f"{name}.weight": weight for name, weight in (whole or {}).items()}
    parts |= {f"{name}.base_layer.weight": weight for name, weight in (base_layers or {}).items()}
    for name, factors in (token_updates or {}).items():
        if name == EMBEDDING:
            parts |= {f"{name}.lora_embedding_A": factors.b.T, f"{name}.lora_embedding_B": factors.a.T}
        else:
            parts |= {f"{name}.lora_A.weight": factors.a, f"{name}.lora_B.weight": factors.b}
    tokens = {name.split(".")[-1]: kept.token_ids.tolist() for name, kept in (token_rows or {}).items()}
    config = {
        **_low_rank_fields(updates, token_updates or {}, base),
        "base_model_name_or_path": base_name,
        "bias": "lora_only" if biases else "none",
        **({"lora_bias": True} if added_biases else {}),
        **({"use_dora": True} if norms else {}),
        **({"modules_to_save": sorted(whole)} if whole else {}),
        **({"trainable_token_indices": tokens} if tokens else {}),
    }
    tensors = {f"{MODULE_PREFIX}{name}": part.float().contiguous().numpy() for name, part in parts.items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}


def _low_rank_fields(
    updates: Mapping[LinearId, Factors], token_updates: Mapping[str, Factors], base: BaseShape
) -> dict[str, object]:
    """The config's fields that say what the updates are."""
    ranks = {base.linears[linear].module: factors.a.shape[0] for linear, factors in updates.items()}
    ranks |= {module: factors.a.shape[0] for module, factors in token_updates.items()}
    rank = max(ranks.values())
    others = {module: other for module, other in sorted(ranks.items()) if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "target_modules": [*target_names(updates, base), *sorted(token_updates)],
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
    }
