"""What a download leaves on disk."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotshoe.clients.downloads import PartialDownload, foreign_file


@dataclass(frozen=True)
class Remote:
    file_name: str
    digest: str
    size_bytes: int


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def remote(data: bytes, file_name: str = "adapter_model.safetensors") -> Remote:
    return Remote(file_name, digest_of(data), len(data))


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
