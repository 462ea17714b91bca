"""What of a directory is published."""

import hashlib
from pathlib import Path

import pytest

from hotshoe.clients import InvalidAdapterDirectory, TransferProgress
from hotshoe.clients.adapter_files import CHUNK_BYTES, AdapterFile, scan_directory


def adapter_directory(root: Path, weights: bytes = b"weights") -> Path:
    root.mkdir(exist_ok=True)
    (root / "adapter_model.safetensors").write_bytes(weights)
    (root / "adapter_config.json").write_text("{}")
    return root


def test_weights_config_and_card_are_taken_and_nothing_else(tmp_path: Path) -> None:
    adapter_directory(tmp_path)
    for name in ("README.md", "optimizer.pt", "tokenizer.json", "adapter_model.bin"):
        (tmp_path / name).write_bytes(name.encode())
    files = scan_directory(tmp_path)
    assert [file.file_name for file in files] == ["adapter_model.safetensors", "adapter_config.json", "README.md"]
    assert [(file.digest, file.size_bytes) for file in files] == [
        (f"sha256:{hashlib.sha256(file.path.read_bytes()).hexdigest()}", file.path.stat().st_size) for file in files
    ]


def test_hashing_tells_its_progress_over_all_files(tmp_path: Path) -> None:
    adapter_directory(tmp_path, weights=bytes(2 * CHUNK_BYTES + 5))
    steps: list[TransferProgress] = []
    scan_directory(tmp_path, steps.append)
    total = 2 * CHUNK_BYTES + 5 + 2
    assert {step.total_bytes for step in steps} == {total}
    completed = [step.completed_bytes for step in steps]
    assert completed == sorted(completed) and completed[0] == CHUNK_BYTES and completed[-1] == total


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_directory_without_a_file_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    (adapter_directory(tmp_path) / missing).unlink()
    with pytest.raises(InvalidAdapterDirectory, match=f"{missing}: missing; PEFT's save_pretrained"):
        scan_directory(tmp_path)


def test_a_pickle_instead_of_safetensors_is_refused_with_the_reason(tmp_path: Path) -> None:
    (adapter_directory(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InvalidAdapterDirectory, match="pickle"):
        scan_directory(tmp_path)


def hub_directory(root: Path) -> Path:
    for name in ("adapter.safetensors", "adapter_config.json", "adapter_interface.json"):
        (root / name).write_bytes(name.encode())
    return root


def test_a_directory_of_adapterhub_has_weights_of_another_name_and_an_interface(tmp_path: Path) -> None:
    hub_directory(tmp_path)
    names = [file.file_name for file in scan_directory(tmp_path)]
    assert names == ["adapter.safetensors", "adapter_config.json", "adapter_interface.json"]
    (tmp_path / "adapter_interface.json").unlink()
    assert [file.file_name for file in scan_directory(tmp_path)] == names[:2]


def test_a_head_of_adapterhub_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    (hub_directory(tmp_path) / "head_config.json").write_text("{}")
    with pytest.raises(InvalidAdapterDirectory, match="head_config.json: .*with_head=False"):
        scan_directory(tmp_path)


def test_a_pickle_of_adapterhub_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (hub_directory(tmp_path) / "adapter.safetensors").rename(tmp_path / "pytorch_adapter.bin")
    with pytest.raises(InvalidAdapterDirectory, match="adapter.safetensors: missing.*use_safetensors=True"):
        scan_directory(tmp_path)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterDirectory, match="no such directory"):
        scan_directory(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidAdapterDirectory, match="file: a file; expected a directory"):
        scan_directory(tmp_path / "file")


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_chunks_from_any_offset_make_up_the_rest(tmp_path: Path, size: int, share: float) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "blob").write_bytes(data[:size])
    start = int(size * share)
    chunks = list(AdapterFile(tmp_path / "blob", "", size).chunks(start))
    assert b"".join(chunk for _, chunk in chunks) == data[start:size]
    assert [offset for offset, _ in chunks] == [start + index * CHUNK_BYTES for index in range(len(chunks))]
    assert all(0 < len(chunk) <= CHUNK_BYTES for _, chunk in chunks)
