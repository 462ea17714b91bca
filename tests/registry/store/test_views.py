"""Adapters as directories: what PEFT loads, what a collector leaves alone, and which names are refused."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_adapters import CONFIG, WEIGHTS, lora_files, publish
from store_children import check_whole

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, InvalidReference, StoreUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.views import Views, check_file_name

NOWHERE = f"sha256:{'0' * 64}"
FILES = ["README.md", "adapter.card.json", CONFIG, WEIGHTS]


def test_a_view_has_an_adapters_files_as_links_to_its_blobs(registry: Registry, root: Path) -> None:
    files = lora_files(1) | {"README.md": b"# hello"}
    record, _ = publish(registry, "a", files)
    view = registry.view(record.digest)
    assert view == root / "views" / record.digest.removeprefix("sha256:")
    assert sorted(os.listdir(view)) == sorted(FILES)
    blobs = registry.adapter_files(record.digest)
    for name in FILES:
        assert os.path.samefile(view / name, blobs[name]) and (view / name).stat().st_mode & 0o222 == 0
    assert {name: (view / name).read_bytes() for name in files} == files
    assert registry.view(record.digest) == view
    check_whole(registry, root)


def test_what_has_a_view_is_kept_until_it_has_none(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    view = registry.view(record.digest)
    assert registry.collect_garbage(grace_seconds=0).adapters == ()
    assert registry.adapter_files(record.digest)
    with (view / WEIGHTS).open("rb") as reading:
        assert registry.unview(record.digest) is True and registry.unview(record.digest) is False
        assert not view.exists() and list((root / ".tmp").iterdir()) == []
        assert len(registry.collect_garbage(grace_seconds=0).adapters) == 1
        registry.collect_garbage(grace_seconds=0)
        assert reading.read() == lora_files(1)[WEIGHTS]
    with pytest.raises(AdapterNotFound):
        registry.view(record.digest)


def test_many_who_want_one_view_get_it_while_others_remove_it(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait()
        for _ in range(10):
            (registry.unview if number == 0 else registry.view)(record.digest)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(os.listdir(registry.view(record.digest))) == sorted(FILES[1:])
    assert list((root / ".tmp").iterdir()) == []


def test_a_view_is_there_after_the_index_is_lost(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    view = registry.view(record.digest)
    registry.close()
    (root / ".db").unlink()
    reopened = Registry(root)
    assert reopened.collect_garbage(grace_seconds=0).adapters == () and (view / WEIGHTS).exists()
    reopened.close()


@pytest.mark.parametrize("damage", ["missing", "other", "more", "link", "file"])
def test_a_damaged_view_is_put_right(registry: Registry, root: Path, damage: str) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    view = registry.view(record.digest)
    match damage:
        case "missing":
            (view / CONFIG).unlink()
        case "other":
            (view / CONFIG).unlink()
            (view / CONFIG).write_bytes(b"{}")
        case "more":
            (view / "evil.py").write_bytes(b"")
        case "link":
            shutil.rmtree(view)
            view.symlink_to(root / "blobs")
        case "file":
            shutil.rmtree(view)
            view.write_bytes(b"")
    assert sorted(os.listdir(registry.view(record.digest))) == sorted(FILES[1:])
    assert not view.is_symlink() and (view / CONFIG).read_bytes() == lora_files(1)[CONFIG]
    assert (root / "blobs" / "sha256").is_dir()
    assert registry.fsck().is_clean


def test_what_a_killed_viewer_left_goes_at_the_next_open(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    registry.close()
    left = root / ".tmp" / "left"
    left.mkdir()
    (left / "file").write_bytes(b"")
    reopened = Registry(root)
    assert list((root / ".tmp").iterdir()) == [] and reopened.view(record.digest).is_dir()
    reopened.close()


def test_a_view_of_nothing_or_of_no_digest_is_refused(registry: Registry) -> None:
    for call in (registry.view, registry.unview):
        with pytest.raises(InvalidReference):
            call("sha256:../..")
    with pytest.raises(AdapterNotFound):
        registry.view(NOWHERE)
    assert registry.unview(NOWHERE) is False


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    for bad in ("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\n", ".hidden", "x" * 201, "\u202ex"):
        with pytest.raises(InvalidReference, match="file name"):
            check_file_name(bad)
    for good in (*FILES, "tokenizer.json", "größe.txt"):
        assert check_file_name(good) == good


def test_a_disk_that_refuses_leaves_no_half_a_view(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    views = root / "views"
    views.rmdir()
    with pytest.raises(StoreUnavailable):
        registry.view(record.digest)
    views.mkdir()
    assert sorted(os.listdir(registry.view(record.digest))) == sorted(FILES[1:])


def test_peft_loads_a_view_as_it_would_what_was_published(registry: Registry, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel
    from peft_adapters import save_peft
    from tiny_models import base_shape, tiny_llama

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    published = save_peft(tmp_path / "peft", tiny_llama(), config)
    files = {name: (tmp_path / "peft" / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    record, _ = publish(registry, "a", files, base=base_shape(tiny_llama()))
    loaded = PeftModel.from_pretrained(tiny_llama(), registry.view(record.digest)).eval()
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected, logits, base = (model(tokens).logits for model in (published, loaded, tiny_llama().eval()))
    assert torch.equal(logits, expected) and not torch.allclose(logits, base, atol=1e-3)
    assert registry.fsck().is_clean


def test_a_blob_that_is_found_damaged_while_it_is_linked_is_told(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    make = Views.make

    def find_damage_first(views: Views, digest: str, files: dict[str, Path]) -> Path:
        path = files["adapter_model.safetensors"]
        path.chmod(0o644)
        path.write_bytes(b"damaged")
        assert registry.fsck().corrupt
        return make(views, digest, files)

    monkeypatch.setattr(Views, "make", find_damage_first)
    with pytest.raises(BlobCorrupt, match="is lost; publishing its adapter again heals it"):
        registry.view(record.digest)
    assert list((root / ".tmp").iterdir()) == list((root / "views").iterdir()) == []


def test_what_goes_while_blobs_are_listed_is_not_listed(registry: Registry, root: Path) -> None:
    for seed in range(3):
        publish(registry, "a", lora_files(seed))
    listed = registry._blobs.scan()
    next(listed)
    for path in (root / "blobs" / "sha256").iterdir():
        path.unlink()
    assert list(listed) == []
