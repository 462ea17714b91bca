"""What is measured, and how large; a dry run takes the same way with sizes that an interpreter gets through."""

from dataclasses import dataclass
from typing import Any

import torch

from hotshoe.kernels.bench.case import Sizes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class ServeSizes:
    """What a server is asked for, with none and with all of some adapters."""

    arguments: tuple[str, ...]  # of the server
    streams: tuple[int, ...]
    adapters: int
    cold: int  # adapters that come and go
    tries: int  # of each place where those lie
    prompt_tokens: int
    new_tokens: int
    rounds: int  # timed, after one that is not


@dataclass(frozen=True, slots=True)
class SessionSizes:
    """A model, the batches that decode it, and for how long each part may run."""

    config: dict[str, Any]  # of a LlamaForCausalLM
    kernels: Sizes
    rows: tuple[int, ...]  # of a decode step
    adapters: tuple[int, ...]
    context: int  # of each row
    prompts: tuple[int, ...]  # rows of a step of one prompt
    rank: int
    steps: int  # timed, after as many that are not
    serve: ServeSizes
    part_seconds: dict[str, int]  # what a part leaves is for those behind it

    @property
    def batches(self) -> list[tuple[int, int]]:
        """(rows, adapters): each row has one of the adapters, so there are no more of them than rows."""
        return [(rows, adapters) for rows in self.rows for adapters in self.adapters if adapters <= rows]


REAL = SessionSizes(
    config={
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
    },
    kernels=Sizes(),
    rows=(1, 8, 32, 64),
    adapters=(0, 1, 8, 32),
    context=512,
    prompts=(512, 2048),
    rank=16,
    steps=20,
    serve=ServeSizes(
        arguments=("--device", "cuda"),
        streams=(1, 8, 32),
        adapters=8,
        cold=2,
        tries=5,
        prompt_tokens=256,
        new_tokens=128,
        rounds=2,
    ),
    part_seconds={"ours": 90, "serve": 120, "peft": 70, "kernels": 95, "fallback": 40, "tests": 50},
)
DRY = SessionSizes(
    config={
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
    kernels=Sizes(
        hidden=64, intermediate=64, heads=4, kv_heads=2, head_dim=16, rows=(1,), adapters=(1,), contexts=(8,), prompt=4
    ),
    rows=(1, 2),
    adapters=(0, 2),
    context=5,
    prompts=(4,),
    rank=4,
    steps=1,
    serve=ServeSizes(
        arguments=("--device", "cpu", "--backend", "reference", "--threads", "1"),
        streams=(2,),
        adapters=2,
        cold=1,
        tries=1,
        prompt_tokens=8,
        new_tokens=3,
        rounds=1,
    ),
    part_seconds=dict.fromkeys(("ours", "serve", "peft", "kernels", "fallback", "tests"), 170),
)


def sizes_of(*, dry_run: bool) -> SessionSizes:
    return DRY if dry_run else REAL


def device_of(*, dry_run: bool) -> torch.device:
    """Where a part runs: a dry run's Triton kernels run in the interpreter."""
    return torch.device("cpu" if dry_run else "cuda")
