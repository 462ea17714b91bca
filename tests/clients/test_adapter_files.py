"""What of a directory is published, and what a download leaves on disk."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotshoe.clients import InvalidAdapterDirectory, TransferProgress
from hotshoe.clients.adapter_files import CHUNK_BYTES, AdapterFile, PartialDownload, foreign_file, scan_directory


@dataclass(frozen=True)
class Remote:
    file_name: str
    digest: str
    size_bytes: int


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def remote(data: bytes, file_name: str = "adapter_model.safetensors") -> Remote:
    return Remote(file_name, digest_of(data), len(data))


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
        (digest_of(file.path.read_bytes()), file.path.stat().st_size) for file in files
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


def test_a_download_takes_its_place_only_when_it_is_whole_and_right(tmp_path: Path) -> None:
    file = remote(b"hello world")
    with PartialDownload(tmp_path, file) as download:
        download.write(b"hello ")
        assert not (tmp_path / file.file_name).exists()
        download.write(b"world")
        assert download.commit()
    assert [path.name for path in tmp_path.iterdir()] == [file.file_name]
    assert (tmp_path / file.file_name).read_bytes() == b"hello world"


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    file = remote(b"hello world")
    with PartialDownload(tmp_path, file) as download:
        download.write(b"hello ")
    with PartialDownload(tmp_path, file) as download:
        assert download.offset == 6
        download.write(b"world")
        assert download.commit()
    assert (tmp_path / file.file_name).read_bytes() == b"hello world"


@pytest.mark.parametrize("wrong", [b"hello_world", b"hello", b"hello world and more"])
def test_wrong_bytes_are_dropped_and_the_old_file_stays(tmp_path: Path, wrong: bytes) -> None:
    file = remote(b"hello world")
    (tmp_path / file.file_name).write_bytes(b"older")
    with PartialDownload(tmp_path, file) as download:
        download.write(wrong)
        assert not download.commit()
        assert download.offset == 0
    assert [path.name for path in tmp_path.iterdir()] == [file.file_name]
    assert (tmp_path / file.file_name).read_bytes() == b"older"


def test_a_file_that_is_here_already_is_known(tmp_path: Path) -> None:
    file = remote(b"hello")
    assert not PartialDownload(tmp_path, file).already_here()
    (tmp_path / file.file_name).write_bytes(b"hallo")
    assert not PartialDownload(tmp_path, file).already_here()
    (tmp_path / file.file_name).write_bytes(b"hello")
    assert PartialDownload(tmp_path, file).already_here()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", ".bashrc", "a\x00b", "a\nb", "-" * 200])
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        PartialDownload(tmp_path, remote(b"x", name))


@pytest.mark.parametrize("digest", ["", "md5:abc", "sha256:../../../../etc/x", f"sha256:{'A' * 64}"])
def test_a_digest_of_another_form_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        PartialDownload(tmp_path, Remote("README.md", digest, 1))


def test_only_what_an_earlier_pull_left_is_taken_up_again(tmp_path: Path) -> None:
    weights, config = remote(b"weights"), remote(b"{}", "adapter_config.json")
    files = [weights, config]
    directory = tmp_path / "pulled"
    assert foreign_file(directory, files) is None, "it does not exist"
    directory.mkdir()
    assert foreign_file(directory, files) is None, "it is empty"
    with PartialDownload(directory, weights) as partial:
        partial.write(b"wei")
    (directory / "notes.txt").write_text("of a reader")
    assert foreign_file(directory, files) is None, "a part of the weights is here"
    assert foreign_file(directory, [remote(b"others"), config]) == min(path.name for path in directory.iterdir())
    (directory / config.file_name).write_bytes(b"[]")
    assert foreign_file(directory, files) == config.file_name
    (directory / config.file_name).write_bytes(b"{}")
    assert foreign_file(directory, files) is None
