"""A server with one adapter in its base's weights: answers for it, refuses all else by name, and leaves no trace."""

from pathlib import Path
from typing import Any

import pytest
from peft_adapters import save_peft, write_lora, write_prefix
from peft_kinds import CONFIGS

from hotshoe.clients import Client, FailedPrecondition

ASK: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 0}


def tokens(client: Client, *adapters: Any) -> list[int]:
    response = client.generate("hello", adapters=adapters, **ASK)
    return [token.token_id for token in response.completions[0].tokens]


def test_a_merged_adapter_is_served_alone_and_the_base_is_unharmed(
    start_server, tiny_base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    hot = write_lora(tmp_path / "hot", model, rank=4, seed=1)
    with Client((server := start_server()).ready["grpc"]) as client:
        digest = client.publish_directory(hot, "hot", tags=["v1", "live"]).adapter.digest
        client.publish_directory(write_lora(tmp_path / "cold", model, seed=2), "cold")
        client.publish_directory(write_prefix(tmp_path / "prefix", model), "prefix")
        save_peft(tmp_path / "skilled", model, CONFIGS["poly"]())
        client.publish_directory(tmp_path / "skilled", "skilled")
        base, unmerged = tokens(client), tokens(client, "hot:v1")
        assert base != unmerged and not client.model_info().HasField("merged")
    server.end()

    server = start_server("--merge", "hot:v1")
    with Client(server.ready["grpc"]) as client:
        answer = client.generate("hello", adapters=["hot:live"], **ASK)
        assert [(one.reference, one.digest, one.weight) for one in answer.adapters] == [("hot:live", digest, 1.0)]
        assert [token.token_id for token in answer.completions[0].tokens] == unmerged
        score = client.score("hello", ["a", "b"], adapters=["hot:v1"])
        assert [one.digest for one in score.adapters] == [digest]
        for adapters in ([], ["cold"], [("hot:v1", 0.5)], ["hot:v1", "cold"]):
            with pytest.raises(FailedPrecondition, match=f"has merged hot@{digest}") as refused:
                client.generate("hello", adapters=adapters, **ASK)
            assert refused.value.reason == "ADAPTER_MERGED"
        merged = client.model_info().merged
        assert (merged.name, merged.digest, merged.linears) == ("hot", digest, 4)
        assert merged.kept == pytest.approx(1, abs=0.05) and 0 <= merged.nf4_kept < merged.kept
        assert f"merged name=hot digest={digest} linears=4" in server.log
    server.end()

    with Client((server := start_server()).ready["grpc"]) as client:
        assert (tokens(client), tokens(client, "hot:v1")) == (base, unmerged)
    server.end()

    with pytest.raises(AssertionError, match="kv_prefix: a PREFIX_TUNING adapter's cannot be merged"):
        start_server("--merge", "prefix")
    with pytest.raises(AssertionError, match="task: found none, expected one from 0 to 2"):
        start_server("--merge", "skilled")
