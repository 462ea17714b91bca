"""One adapter's files from several adapters, whatever they consist of, as long as they consist of the same.

low-rank updates     every method of `merging`, as LORA
scales               linear, as IA3
both of these        linear, cat and svd, as LORA with use_dora, where that can say it
these beside biases, norms, token rows and updates of embedding and head, or those alone
                     linear, cat and svd, as LORA, BEFT, LN_TUNING or TRAINABLE_TOKENS (`replacement_files`)
updates of full rank, as rotations make
                     svd, which cuts their sum to a rank, as LORA
prefixes             cat: one after the other in the order of the adapters, as PREFIX_TUNING
soft prompts         cat, as PROMPT_TUNING
bottlenecks          linear and cat, as AdapterHub's, where they have one activation and read the same
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import KvPrefix, LoweredAdapter
from hotshoe.registry.recipes.bottleneck_merging import merged_bottleneck_files
from hotshoe.registry.recipes.full_merging import merge_full
from hotshoe.registry.recipes.ia3_files import ia3_files
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merge_subject import Subject, subjects_in_common
from hotshoe.registry.recipes.merging import Merge, merge
from hotshoe.registry.recipes.prompt_files import prefix_files, prompt_files
from hotshoe.registry.recipes.replacement_files import replacement_files
from hotshoe.registry.recipes.replacements import merge_replacements
from hotshoe.registry.recipes.scale_merging import merge_scales
from hotshoe.registry.recipes.scaled_merging import ScaledMerge, merge_scaled
from hotshoe.registry.recipes.token_merging import merge_tokens
from hotshoe.registry.validation import Pause, go_on


class MergedAdapter(NamedTuple):
    """What is to be published."""

    files: Mapping[str, bytes]  # by name
    recipe: Mapping[str, object]  # for the manifest
    energy_kept: float  # as `Merge` has it; 1 where nothing can be cut


def merged_adapter(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseWeights,
    *,
    base_name: str,
    pause: Pause = go_on,
) -> MergedAdapter:
    """Merges adapters of one base; `pause` is called between parts of the work.

    Args:
        parameters: with `check_parents` done.
        base_name: what base_model_name_or_path says.

    Raises:
        InvalidAdapter: the adapters have nothing in common that the method could merge, or no kind can say what
            comes of it.
    """
    import torch

    subject = parameters.choose(subjects_in_common(adapters, base), weights)
    energy_kept = 1.0
    if subject is Subject.SCALES:
        scales = merge_scales(adapters, weights, parameters, base.shape, pause=pause)
        files = ia3_files(scales, base.shape, base_name=base_name)
    elif subject is Subject.PREFIXES:
        files = prefix_files(_one_after_the_other(adapters), base.shape, base_name=base_name)
    elif subject is Subject.PROMPTS:
        prompts = [adapter.prompt_embeddings for adapter in adapters if adapter.prompt_embeddings is not None]
        files = prompt_files(torch.cat(prompts), base.shape, base_name=base_name)
    elif subject is Subject.BOTTLENECKS:
        files = merged_bottleneck_files(adapters, parameters.shares(weights), base.shape, base_name=base_name)
    elif subject is Subject.SCALED_UPDATES:
        scaled = merge_scaled(adapters, weights, parameters, base, pause=pause)
        energy_kept = scaled.energy_kept
        files = lora_files(scaled.updates, base.shape, base_name=base_name, norms=scaled.norms)
    elif subject in (Subject.PARTS, Subject.FULL_UPDATES):
        files, energy_kept = _with_replacements(subject, adapters, weights, parameters, base, base_name, pause)
    else:
        merged = merge(adapters, weights, parameters, base, pause=pause)
        energy_kept = merged.energy_kept
        files = lora_files(merged.updates, base.shape, base_name=base_name)
    recipe = {**parameters.recipe(subject), "energy_kept": round(energy_kept, 6)}
    return MergedAdapter(files, recipe, energy_kept)


def _with_replacements(
    subject: Subject,
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseWeights,
    base_name: str,
    pause: Pause,
) -> tuple[dict[str, bytes], float]:
    """The files, and the share of the updates that is kept."""
    row_norms = None
    replaced = merge_replacements(adapters, weights, parameters, base.shape)
    tokens = merge_tokens(adapters, weights, parameters)
    merged: Merge | ScaledMerge
    if subject is Subject.FULL_UPDATES:
        merged = merge_full(adapters, weights, parameters, base, pause=pause)
    elif any(part.output_scale is not None for adapter in adapters for part in adapter.linears.values()):
        merged = merge_scaled(adapters, weights, parameters, base, pause=pause)
        row_norms = merged.norms
    else:
        merged = merge(adapters, weights, parameters, base, pause=pause)
    files = replacement_files(
        replaced,
        base,
        base_name=base_name,
        updates=merged.updates,
        row_norms=row_norms,
        token_updates=tokens.updates,
    )
    size = merged.size + tokens.size
    kept = (merged.energy_kept * merged.size + tokens.kept) / size if size else merged.energy_kept
    return files, kept


def _one_after_the_other(adapters: Sequence[LoweredAdapter]) -> KvPrefix:
    """Keys hold no positions, so that nothing has to be turned."""
    import torch

    prefixes = [adapter.kv_prefix for adapter in adapters if adapter.kv_prefix is not None]
    return KvPrefix(
        torch.cat([prefix.keys for prefix in prefixes], dim=1), torch.cat([prefix.values for prefix in prefixes], dim=1)
    )
