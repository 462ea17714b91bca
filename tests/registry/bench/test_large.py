from pathlib import Path

import pytest

from hotshoe.registry.bench import large


def test_a_large_adapter_is_published_read_and_lowered_beside_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "_FREED_BYTES", 0)
    found = large.measure_large(tmp_path, 3, rounds=2)
    assert found["publish, by the least"] == found["publish"] / found["least"]
    for dtype in ("", " bfloat16", " float16"):
        assert found[f"lower{dtype}, by the read"] == found[f"lower{dtype}"] / found[f"read{dtype}"]
    assert min(found.values()) > 0 and len(found) == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "store",
    ]
