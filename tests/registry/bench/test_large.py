from pathlib import Path

import pytest

from hotshoe.registry.bench import large


def test_a_large_adapter_is_published_read_and_lowered_beside_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "_FREED_BYTES", 0)
    found = large.measure_large(tmp_path, 3, rounds=2)
    assert found["publish, by the least"] == found["publish"] / found["least"]
    assert found["lower, by the read"] == found["lower"] / found["read"]
    assert min(found.values()) > 0 and len(found) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "store",
    ]
