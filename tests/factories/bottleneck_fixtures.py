"""Makes tests/factories/adapterhub: adapters as the `adapters` package writes them, and the logits that it gives.

The package wants another transformers than hotshoe does, so this runs in an environment of its own:

    python -m venv /tmp/adapterhub
    /tmp/adapterhub/bin/pip install torch==2.13.0 adapters==1.3.0 "transformers~=4.57.6"
    /tmp/adapterhub/bin/python tests/factories/bottleneck_fixtures.py

For each base, a tiny random one: base/ as transformers writes it, in bfloat16; a directory for each case, as
`save_adapter(…, with_head=False, use_safetensors=True)` writes it; and logits.safetensors, "tokens" and what the
package computes of them in float32, by case.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import adapters
import torch
from adapters import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    ParBnConfig,
    SeqBnConfig,
)
from adapters.composition import Average
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

FIXTURES = Path(__file__).parent / "adapterhub"
BASE, LOGITS = "base", "logits.safetensors"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
PUBLISHED = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer": SeqBnConfig(reduction_factor=4),
    "parallel": ParBnConfig(reduction_factor=4),
    "compacter": CompacterConfig(reduction_factor=4),
    "compacter-plus-plus": CompacterPlusPlusConfig(reduction_factor=8),
}
CONFIGS: Mapping[str, Mapping[str, BnConfig]] = {
    "llama": {
        **PUBLISHED,
        "houlsby-relu": DoubleSeqBnConfig(reduction_factor=8, non_linearity="relu"),
        "of-layers": DoubleSeqBnConfig(reduction_factor={"0": 0.5, "default": 16}, non_linearity="gelu_new"),
        "left-out": ParBnConfig(
            mh_adapter=True, reduction_factor=100, non_linearity="tanh", scaling=0.5, leave_out=[0, 7]
        ),
        "adapter-plus": AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
        "residual-twice": SeqBnConfig(
            reduction_factor=4, residual_before_ln=False, scaling="learned", non_linearity="leakyrelu"
        ),
        "residual-gone": DoubleSeqBnConfig(
            reduction_factor=4, original_ln_after=False, residual_before_ln=False, non_linearity="Sigmoid"
        ),
        "parallel-residual-gone": ParBnConfig(
            reduction_factor=4, original_ln_after=False, mh_adapter=True, non_linearity="silu", scaling="channel"
        ),
        "compacter-of-rules": CompacterConfig(
            reduction_factor=2, shared_phm_rule=False, factorized_phm_rule=True, phm_dim=2, phm_rank=3
        ),
        "compacter-of-whole-matrices": CompacterPlusPlusConfig(
            reduction_factor=4, factorized_phm_rule=True, factorized_phm_W=False, phm_bias=False
        ),
    },
    "mistral": {case: PUBLISHED[case] for case in ("pfeiffer", "parallel")},
    "qwen2": PUBLISHED,
    "qwen3": {case: PUBLISHED[case] for case in ("pfeiffer", "parallel")},
}
# Of cases above, with weights that sum to 1: else the package scales the blocks' outputs, too. Over llama.
AVERAGES = {"average": {"houlsby": 1.25, "houlsby-relu": -0.25}}


def base_of(family: str) -> PreTrainedModel:
    """Random, in numbers that bfloat16 holds, and the same whatever the order of its parameters."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, head_dim=16))
    randomize(model, lambda name: True, scale=0.1)
    return model.eval()


@torch.no_grad()
def randomize(model: PreTrainedModel, chosen: Callable[[str], bool], *, scale: float) -> None:
    for name, parameter in model.named_parameters():
        if chosen(name):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            around = 1.0 if name.endswith(("norm.weight", ".scaling")) else 0.0
            parameter.copy_((around + scale * noise).bfloat16().float())


@torch.no_grad()
def make(family: str) -> None:
    root = FIXTURES / family
    root.mkdir(parents=True, exist_ok=True)
    base_of(family).bfloat16().save_pretrained(root / BASE)
    model = base_of(family)
    tokens = torch.randint(0, SIZES["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(7))
    logits = {"tokens": tokens, BASE: model(tokens).logits}
    adapters.init(model)
    for case, config in CONFIGS[family].items():
        model.add_adapter(case, config=config)
        randomize(model, lambda name, case=case: f".{case}." in name, scale=0.4)
        model.save_adapter(str(root / case), case, with_head=False, use_safetensors=True)
        model.set_active_adapters(case)
        logits[case] = model.eval()(tokens).logits
    for case, weights in AVERAGES.items() if family == "llama" else ():
        shares = [len(weights) * weight for weight in weights.values()]  # the package takes a mean of what they weigh
        model.set_active_adapters(Average(*weights, weights=shares, normalize_weights=False))
        logits[case] = model.eval()(tokens).logits
    save_file(logits, root / LOGITS)
    for case in logits.keys() - {"tokens", BASE}:
        print(f"{family}, {case}: {(logits[case] - logits[BASE]).abs().max():.2f} from the base")


if __name__ == "__main__":
    for each in CONFIGS:
        make(each)
