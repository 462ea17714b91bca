"""Small adapters as bytes, and the way into a registry, for the store's tests. No torch: children start at once."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors.numpy import save

from hotshoe.registry.formats.base import BaseShape, LinearId, LinearShape
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor
from hotshoe.registry.registry import Registry

HIDDEN = 8
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def small_base(*, digest: str = f"sha256:{'ba5e' * 16}", hidden: int = HIDDEN) -> BaseShape:
    """One layer with q_proj and v_proj."""
    linears = {
        LinearId(0, target): LinearShape(f"model.layers.0.self_attn.{target}", hidden, hidden, False)
        for target in ("q_proj", "v_proj")
    }
    return BaseShape(
        name="small",
        digest=digest,
        model_type="llama",
        hidden_size=hidden,
        num_layers=1,
        num_kv_heads=1,
        head_dim=hidden,
        vocab_size=32,
        max_sequence_length=64,
        linears=linears,
    )


def lora_files(seed: int = 0, *, rank: int = 2) -> dict[str, bytes]:
    """A LORA adapter of `small_base`; equal arguments give equal bytes."""
    normal = np.random.default_rng(seed).standard_normal
    tensors = {}
    for target in ("q_proj", "v_proj"):
        key = f"base_model.model.model.layers.0.self_attn.{target}"
        tensors[f"{key}.lora_A.weight"] = normal((rank, HIDDEN), dtype=np.float32)
        tensors[f"{key}.lora_B.weight"] = normal((HIDDEN, rank), dtype=np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/small",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    return {WEIGHTS: save(tensors), CONFIG: json.dumps(config).encode()}


def ia3_files(seed: int = 0) -> dict[str, bytes]:
    """An IA3 adapter of `small_base`."""
    factors = 1 + 0.1 * np.random.default_rng(seed).standard_normal((HIDDEN, 1), dtype=np.float32)
    config = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/small",
        "target_modules": ["v_proj"],
        "feedforward_modules": [],
    }
    key = "base_model.model.model.layers.0.self_attn.v_proj.ia3_l"
    return {WEIGHTS: save({key: factors}), CONFIG: json.dumps(config).encode()}


def descriptor(data: bytes, file_name: str = WEIGHTS) -> FileDescriptor:
    return FileDescriptor(file_name, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def descriptors(files: Mapping[str, bytes]) -> list[FileDescriptor]:
    return [descriptor(data, name) for name, data in files.items()]


def upload(registry: Registry, files: Mapping[str, bytes]) -> list[FileDescriptor]:
    """Sends what the registry lacks, as a client does."""
    blobs = descriptors(files)
    missing = registry.missing_blobs([blob.digest for blob in blobs])
    for blob in blobs:
        if blob.digest in missing:
            with registry.open_upload(blob) as session:
                session.write(session.committed_bytes, files[blob.file_name][session.committed_bytes :])
                session.finish()
    return blobs


def publish(
    registry: Registry,
    name: str,
    files: Mapping[str, bytes],
    *,
    tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    base: BaseShape | None = None,
    validate_only: bool = False,
) -> tuple[AdapterRecord, bool]:
    """Uploads and publishes."""
    return registry.publish(
        name=name,
        tags=tags,
        files=upload(registry, files),
        annotations=annotations or {},
        base=base or small_base(),
        validate_only=validate_only,
    )
