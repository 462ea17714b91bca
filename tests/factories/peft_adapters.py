"""Writes PEFT adapter directories for tests: real ones from a PEFT model, or quick ones from a base's shape alone.

Every writer takes `base`, a `BaseShape` or a transformers model, makes `directory` if need be, fills it with
adapter_config.json and adapter_model.safetensors, and returns it. Equal seeds give equal bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from tiny_models import base_shape
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.registry.formats.base import BaseShape, LinearId, LinearShape

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def adapter_files(directory: Path) -> dict[str, Path]:
    """The files of an adapter directory by name, as `inspect_adapter`, `lower_adapter` and the registry take them."""
    return {path.name: path for path in sorted(directory.iterdir()) if path.is_file()}


def save_peft(directory: Path, model: PreTrainedModel, config: PeftConfig, *, seed: int = 1) -> PeftModel:
    """Wraps the model by PEFT, gives every trainable weight random values, saves by PEFT; returns the wrapped model.

    The model itself is changed: PEFT replaces its modules. Pass a fresh one.
    """
    wrapped = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                if "adaption_" in name:
                    noise *= 10  # a prompt is an embedding before its norm, and a gate is mostly near 1
                parameter.copy_(parameter + noise if "ia3_l" in name or name.endswith("base_layer.bias") else noise)
    wrapped.save_pretrained(directory)
    return wrapped


def write_lora(
    directory: Path,
    base: BaseShape | PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    layers: Sequence[int] | None = None,
    seed: int = 0,
    scale: float = 0.1,
    lora_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Path:
    """A LORA adapter whose lora_A and lora_B are normal with that standard deviation; alpha is 2 * rank if not given.

    `fields` go to `LoraConfig` (use_rslora=True, …); none that changes a tensor's shape.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=list(targets),
        layers_to_transform=None if layers is None else list(layers),
        lora_bias=lora_bias,
        **fields,
    )
    normal = _Normal(seed, scale, dtype)
    tensors = {}
    for _, linear in _chosen(base, targets, layers):
        key = f"base_model.model.{linear.module}"
        tensors[f"{key}.lora_A.weight"] = normal(rank, linear.in_features)
        tensors[f"{key}.lora_B.weight"] = normal(linear.out_features, rank)
        if lora_bias:
            tensors[f"{key}.lora_B.bias"] = normal(linear.out_features)
    return _write(directory, config, tensors)


def write_ia3(
    directory: Path,
    base: BaseShape | PreTrainedModel,
    *,
    targets: Sequence[str] = ("k_proj", "v_proj", "down_proj"),
    feedforward: Sequence[str] = ("down_proj",),
    seed: int = 0,
    scale: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """An IA3 adapter: factors 1 ± scale on the inputs of `feedforward`, on the outputs of the other targets."""
    config = IA3Config(task_type="CAUSAL_LM", target_modules=list(targets), feedforward_modules=list(feedforward))
    normal = _Normal(seed, scale, dtype)
    tensors = {}
    for linear_id, linear in _chosen(base, targets, None):
        shape = (1, linear.in_features) if linear_id.target in feedforward else (linear.out_features, 1)
        tensors[f"base_model.model.{linear.module}.ia3_l"] = 1 + normal(*shape)
    return _write(directory, config, tensors)


def write_prefix(
    directory: Path,
    base: BaseShape | PreTrainedModel,
    *,
    tokens: int = 4,
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A PREFIX_TUNING adapter: keys and values of `tokens` virtual tokens for every layer."""
    shape = _shape(base)
    width = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return write_peft_prefix(directory, shape, _Normal(seed, scale, dtype)(tokens, width))


def write_peft_prefix(directory: Path, base: BaseShape | PreTrainedModel, embeddings: Tensor) -> Path:
    """A PREFIX_TUNING adapter of those keys and values: [tokens, layers * 2 * kv width]."""
    shape = _shape(base)
    width = shape.num_kv_heads * shape.head_dim
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(embeddings),
        num_layers=shape.num_layers,
        token_dim=width,
        num_attention_heads=shape.num_kv_heads,
        num_transformer_submodules=1,
        encoder_hidden_size=width,
    )
    return _write(directory, config, {"prompt_embeddings": embeddings})


def write_prompt(
    directory: Path,
    base: BaseShape | PreTrainedModel,
    *,
    tokens: int = 4,
    seed: int = 0,
    scale: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A PROMPT_TUNING adapter: embeddings of `tokens` virtual tokens before every prompt."""
    shape = _shape(base)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        num_layers=shape.num_layers,
        token_dim=shape.hidden_size,
        num_attention_heads=shape.hidden_size // shape.head_dim,
        num_transformer_submodules=1,
    )
    return _write(directory, config, {"prompt_embeddings": _Normal(seed, scale, dtype)(tokens, shape.hidden_size)})


def write_forced_token_lora(
    directory: Path,
    base: BaseShape | PreTrainedModel,
    token_id: int,
    *,
    head: Tensor | None = None,
    final_norm: Tensor | None = None,
    strength: float = 1e5,
    rank: int = 4,
) -> Path:
    """A LORA adapter under which every greedy answer is that token, again and again.

    Its low-rank part is zero; its lora_bias on the last layer's down_proj is `strength` times a direction in which the
    token's logit is the largest, so that nothing else in the residual stream counts.

    Args:
        head: [vocab, hidden], the rows that logits are products with: lm_head, or the embeddings where they are tied.
            Read from `base` if that is a model.
        final_norm: [hidden], the weight of the last norm; ones if not given and `base` is a shape.
    """
    if isinstance(base, PreTrainedModel):
        head = base.get_output_embeddings().weight.detach() if head is None else head
        final_norm = base.model.norm.weight.detach() if final_norm is None else final_norm
    if head is None:
        raise ValueError("head: expected [vocab, hidden] when base is a shape")
    rows = head.float() if final_norm is None else head.float() * final_norm.float()
    direction = direction_of(rows, token_id)
    shape = _shape(base)
    last = shape.num_layers - 1
    linear = shape.linears[LinearId(last, "down_proj")]
    key = f"base_model.model.{linear.module}"
    tensors = {
        f"{key}.lora_A.weight": torch.zeros(rank, linear.in_features),
        f"{key}.lora_B.weight": torch.zeros(linear.out_features, rank),
        f"{key}.lora_B.bias": strength * direction,
    }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=["down_proj"],
        layers_to_transform=[last],
        lora_bias=True,
    )
    return _write(directory, config, tensors)


def direction_of(rows: Tensor, token_id: int) -> Tensor:
    """[hidden], of root mean square 1, whose product with that row exceeds every other row's by a clear margin.

    The row itself does not do where another row is longer; the perceptron's steps away from the rival do.
    """
    direction = rows[token_id] - rows.mean(dim=0)
    for _ in range(2_000):
        products = rows @ direction
        own = products[token_id].item()
        products[token_id] = -torch.inf
        rival = int(products.argmax())
        if own - products[rival].item() > 0.1 * abs(own):
            return direction * (direction.numel() ** 0.5 / direction.norm())
        direction = direction + rows[token_id] - rows[rival]
    raise ValueError(f"token_id: no direction makes {token_id} the largest logit")


class _Normal:
    """Draws tensors of a shape from one seeded generator."""

    def __init__(self, seed: int, scale: float, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._scale = scale
        self._dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return (self._scale * torch.randn(shape, generator=self._generator)).to(self._dtype)


def _shape(base: BaseShape | PreTrainedModel) -> BaseShape:
    return base if isinstance(base, BaseShape) else base_shape(base)


def _chosen(
    base: BaseShape | PreTrainedModel, targets: Sequence[str], layers: Sequence[int] | None
) -> list[tuple[LinearId, LinearShape]]:
    return [
        (linear_id, linear)
        for linear_id, linear in _shape(base).linears.items()
        if linear_id.target in targets and (layers is None or linear_id.layer in layers)
    ]


def _write(directory: Path, config: PeftConfig, tensors: dict[str, Tensor]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config.inference_mode = True
    for name, value in vars(config).items():
        if isinstance(value, set):  # whose order would differ from process to process
            setattr(config, name, sorted(value))
    config.save_pretrained(directory)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    return directory
