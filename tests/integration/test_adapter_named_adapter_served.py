"""The adapter named is the adapter served: a share of what `tests/factories/canaries.py` asks."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from canaries import SLOTS, publish_canaries, sing
from model_directories import tiny_model
from server_process import ServerProcess

NUM_ADAPTERS = 24
NUM_REQUESTS = 600


def test_no_answer_is_another_adapters_under_churn_and_moving_tags(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start_server(*SLOTS)
    canaries = publish_canaries(server, tiny_model(), tmp_path / "canaries", NUM_ADAPTERS)
    asyncio.run(sing(server.ready["grpc"], canaries, NUM_REQUESTS))
    assert canaries.wrong == []
    assert canaries.answers.total() == NUM_REQUESTS and len(canaries.answers) == NUM_ADAPTERS + 1
    assert server.metric("hotshoe_adapter_evictions_total") > NUM_ADAPTERS and canaries.cached_tokens > 0
