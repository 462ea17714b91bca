"""Tensors of floats read together: each has its own values, and a wrong one is named, whoever reads which piece."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hotshoe.registry import stored_runs
from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.stored_runs import read_stored
from hotshoe.registry.validation import TensorFile, go_on

THREADS = [1, 2, 3]
SIZES = [(3, 5), (40,), (0, 4), (7, 1), (2, 3, 4), (64, 2), (1,)]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """So that small files have many, which end within tensors."""
    monkeypatch.setattr(stored_runs, "PIECE_BYTES", 32)
    monkeypatch.setattr(stored_runs, "_THREAD_PIECES", 1)


@pytest.fixture
def tensors():
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    return {f"{number}.{dtype}": torch.randn(shape).to(dtype) for number, shape in enumerate(SIZES) for dtype in dtypes}


def opened(directory, tensors, kind=TensorFile) -> TensorFile:
    path = directory / "adapter_model.safetensors"
    save_file(tensors, path)
    return kind.open(path, max_bytes=1 << 20)


def scales_of(file: TensorFile) -> dict:
    """A scale for each tensor, 1 for some."""
    return {entry: 1.0 if number % 3 == 0 else 1.7 * number for number, entry in enumerate(file.entries.values())}


def assert_equal(found: dict, tensors: dict, scales: dict) -> None:
    assert found.keys() == scales.keys()
    for entry, bits in found.items():
        tensor = tensors[entry.name]
        if tensor.dtype == torch.float32:
            expected = (tensor.numpy() * np.float32(scales[entry])).view(np.uint32)
        else:
            expected = tensor.view(torch.uint16).numpy()
        assert bits.dtype == expected.dtype and np.array_equal(bits, expected)


@pytest.mark.parametrize("threads", THREADS)
def test_each_tensor_has_its_own_values(threads, tensors, tmp_path):
    with opened(tmp_path, tensors) as file:
        scales = scales_of(file)
        found = read_stored(file, scales, pause=go_on, threads=threads)
    assert_equal(found, tensors, scales)


@pytest.mark.parametrize("threads", THREADS)
def test_some_are_read_without_those_between(threads, tensors, tmp_path):
    with opened(tmp_path, tensors) as file:
        scales = dict(list(scales_of(file).items())[::2])
        found = read_stored(file, scales, pause=go_on, threads=threads)
    assert_equal(found, tensors, scales)


def test_nothing_is_read_of_none(tensors, tmp_path):
    with opened(tmp_path, tensors) as file:
        assert read_stored(file, {}, pause=go_on, threads=2) == {}


@pytest.mark.parametrize("threads", THREADS)
def test_the_first_tensor_that_has_a_value_which_is_not_finite_is_named(threads, tensors, tmp_path):
    with opened(tmp_path, tensors) as file:
        in_order = sorted(
            (entry for entry in file.entries.values() if entry.num_elements), key=lambda entry: entry.offset
        )
    for number, entry in enumerate(in_order):
        for at in {0, entry.num_elements - 1}:
            wrong = {name: tensor.clone() for name, tensor in tensors.items()}
            wrong[entry.name].view(-1)[at] = torch.nan
            wrong[in_order[-1].name].view(-1)[-1] = torch.inf
            with opened(tmp_path, wrong) as file, pytest.raises(InvalidAdapter, match="NaN or infinity") as refusal:
                read_stored(file, scales_of(file), pause=go_on, threads=threads)
            assert refusal.value.field == in_order[number].name


@pytest.mark.parametrize("threads", THREADS)
def test_a_file_that_is_cut_off_meanwhile_is_refused(threads, tensors, tmp_path):
    with opened(tmp_path, tensors) as file:
        path = tmp_path / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InvalidAdapter, match="cut off"):
            read_stored(file, scales_of(file), pause=go_on, threads=threads)


class WatchedFile(TensorFile):
    """Knows which threads have read of it; those that did not open it wait until they may."""

    def __init__(self, *given, **named) -> None:
        self.readers: set[int] = set()
        self.read_elsewhere, self.others_may = threading.Event(), threading.Event()
        self._opener = threading.get_ident()
        super().__init__(*given, **named)

    def read_into(self, buffer, offset):
        is_other = threading.get_ident() != self._opener
        if is_other:
            assert self.others_may.wait(60)
        super().read_into(buffer, offset)
        self.readers.add(threading.get_ident())
        if is_other:
            self.read_elsewhere.set()


def test_the_other_thread_reads_while_this_one_pauses(tensors, tmp_path):
    with opened(tmp_path, tensors, WatchedFile) as file:

        def pause() -> None:
            file.others_may.set()
            assert file.read_elsewhere.wait(60)

        scales = scales_of(file)
        found = read_stored(file, scales, pause=pause, threads=2)
        assert len(file.readers) == 2
    assert_equal(found, tensors, scales)


def test_one_thread_reads_alone(tensors, tmp_path):
    with opened(tmp_path, tensors, WatchedFile) as file:
        read_stored(file, scales_of(file), pause=go_on, threads=1)
        assert file.readers == {threading.get_ident()}


@pytest.mark.parametrize("threads", THREADS)
def test_who_is_ended_while_it_pauses_leaves_no_thread_behind(threads, tensors, tmp_path):
    before = threading.active_count()
    with opened(tmp_path, tensors, WatchedFile) as file:

        def pause() -> None:
            file.others_may.set()
            raise TimeoutError("nobody waits for this any more")

        with pytest.raises(TimeoutError, match="nobody waits"):
            read_stored(file, scales_of(file), pause=pause, threads=threads)
    assert threading.active_count() == before
