"""Whether an adapter's files are what they say they are, before anything of a size that they declare is allocated.

The safetensors library promises memory safety; this reader also promises that every byte of the file belongs to
exactly one sensibly named tensor of finite numbers or of integers. Nothing here imports torch or can execute what a
file holds.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.strict_json import is_plain, parse_json, shown

MEBIBYTE = 1 << 20
MAX_HEADER_BYTES = MEBIBYTE
MAX_TENSORS = 4_096
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 5
ANY_INTEGER = (1 << 62,)  # a bound that is none
_LINE_VALUES = 16
_NO_SIZE = 1 << 48  # more than any file's
_PIECE = MEBIBYTE // 4  # values that are read and checked at once, so that they are still in the cache


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """The largest adapter that is accepted."""

    max_rank: int = 256
    max_bytes: int = 512 * MEBIBYTE  # of adapter_model.safetensors


@dataclass(frozen=True, slots=True)
class _Float:
    """One of the dtypes that a tensor may have; integers are its bit patterns without the sign."""

    bits: type[np.unsignedinteger]
    magnitude: int  # mask
    infinity: int  # from here on: infinity or NaN
    too_large: int  # from here on: at least 2^64 in float32, of which the product of two overflows

    @property
    def size_bytes(self) -> int:
        return np.dtype(self.bits).itemsize


_FLOATS: Mapping[str, _Float] = {
    "F64": _Float(np.uint64, (1 << 63) - 1, 0x7FF0 << 48, 0x43EF_FFFF_F000_0000),
    "F32": _Float(np.uint32, 0x7FFF_FFFF, 0x7F80_0000, 0x5F80_0000),
    "F16": _Float(np.uint16, 0x7FFF, 0x7C00, 0x7C00),
    "BF16": _Float(np.uint16, 0x7FFF, 0x7F80, 0x5F80),
}

_INTEGERS: Mapping[str, type[np.integer]] = {"U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


class TensorEntry(NamedTuple):
    """Where one tensor lies in its file."""

    name: str
    dtype: str  # "F64", "F32", "F16" or "BF16"; or "U8", "I16", "I32" or "I64"
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the start of the file
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    @property
    def is_integer(self) -> bool:
        return self.dtype in _INTEGERS


Pause = Callable[[], None]


def go_on() -> None:
    """What `pause` does for those who are in no one's way."""


class TensorFile:
    """An open safetensors file whose header has been checked in full; close it, or use it as a context manager.

    Raises:
        InvalidAdapter: the header or the sizes are wrong; nothing past the offending part has been read.
    """

    def __init__(
        self, file: FileIO, *, name: str = "adapter_model.safetensors", max_bytes: int, pause: Pause = go_on
    ) -> None:
        """`pause` is called between the header's entries, so that the caller may spread the work over time."""
        self._file = file
        self._pause = pause
        self._name = name
        self._room_left = np.empty(0, np.float32)
        self.size_bytes = file.seek(0, os.SEEK_END)
        if self.size_bytes > max_bytes:
            raise InvalidAdapter(name, f"expected at most {max_bytes} bytes, found {self.size_bytes}")
        self.entries: Mapping[str, TensorEntry] = self._read_header()
        self._floats_unread = sum(entry.num_elements for entry in self.entries.values() if not entry.is_integer)

    @classmethod
    def open(cls, path: Path, *, name: str = "adapter_model.safetensors", max_bytes: int, pause: Pause = go_on) -> Self:
        """Opens and checks the file at that path; refusals call it `name`."""
        file = open(path, "rb", buffering=0)  # unbuffered: not a byte is read before its check
        try:
            return cls(file, name=name, max_bytes=max_bytes, pause=pause)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer with the file's bytes from there on, whatever other threads read of it meanwhile."""
        while buffer:
            count = os.preadv(self._file.fileno(), (buffer,), offset)  # it may read less than asked
            if not count:
                self._refuse("ended early: it was cut off while it was being read")
            buffer, offset = buffer[count:], offset + count

    def check_finite(self, entry: TensorEntry) -> None:
        """Reads the tensor a piece at a time and raises InvalidAdapter, naming it, if a value is not finite."""
        if entry.is_integer:  # any is
            return
        bits = np.empty(min(entry.num_elements, _PIECE), _FLOATS[entry.dtype].bits)
        for start in range(0, entry.num_elements, _PIECE):
            self._read_finite(entry, start, bits[: entry.num_elements - start])

    def read(self, entry: TensorEntry, *, scale: float = 1.0) -> NDArray[np.float32]:
        """The tensor's values as float32, times scale; raises InvalidAdapter if one is not finite.

        Of 64 bits they are rounded, as PEFT does where it copies them into its own.
        """
        values = self._room(entry.num_elements)
        is_whole = entry.dtype == "F32"
        narrow = None if is_whole else np.empty(min(entry.num_elements, _PIECE), _FLOATS[entry.dtype].bits)
        for start in range(0, entry.num_elements, _PIECE):
            piece = values[start : start + _PIECE]
            bits = piece.view(np.uint32) if narrow is None else narrow[: piece.size]
            self._read_finite(entry, start, bits)
            if not is_whole:
                _convert(entry.dtype, bits, piece)
            if scale != 1:
                piece *= np.float32(scale)
        return values.reshape(entry.shape)

    def set_aside(self, entries: Iterable[TensorEntry]) -> None:
        """Keeps no memory for tensors of floats that `read` will not be asked for."""
        self._floats_unread -= sum(entry.num_elements for entry in entries)

    def read_integers(self, entry: TensorEntry, *, below: Sequence[int]) -> NDArray[np.int64]:
        """The tensor's values; raises InvalidAdapter if one is not from 0 to below that of its row, or the only one."""
        stored = np.empty(entry.num_elements, _INTEGERS[entry.dtype])
        self.read_into(stored.data.cast("B"), entry.offset)
        rows = stored.astype(np.int64).reshape(len(below), -1)
        for bound, row in zip(below, rows, strict=True):
            odd = row[(row < 0) | (row >= bound)]
            if odd.size:
                raise InvalidAdapter(entry.name, f"expected integers from 0 to {bound - 1}, found {odd[0]}")
        return rows.reshape(entry.shape)

    def _room(self, num_elements: int) -> NDArray[np.float32]:
        """Memory for a tensor's values: all tensors' lie together, as large pages cost a quarter of small ones."""
        needed = num_elements + -num_elements % _LINE_VALUES  # in whole lines, so that the next is aligned
        if needed > self._room_left.size:  # not yet, or a tensor is read twice
            rest = self._floats_unread + len(self.entries) * _LINE_VALUES
            self._room_left = np.empty(max(rest, needed), np.float32)
        self._floats_unread -= num_elements
        room, self._room_left = self._room_left[:num_elements], self._room_left[needed:]
        return room

    def _read_finite(self, entry: TensorEntry, start: int, bits: NDArray[np.unsignedinteger]) -> None:
        """Reads the tensor's values from `start` into `bits`, as many as it holds, and checks each."""
        self.read_into(bits.data.cast("B"), entry.offset + start * bits.itemsize)
        require_finite(entry, bits)

    def _read_header(self) -> dict[str, TensorEntry]:
        if self.size_bytes < 8:
            self._refuse(f"expected a safetensors file, found {self.size_bytes} bytes")
        prefix = bytearray(8)
        self.read_into(memoryview(prefix), 0)
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            self._refuse(f"expected a header of at most {MAX_HEADER_BYTES} bytes, its first 8 bytes say {length}")
        if length > self.size_bytes - 8:
            self._refuse(f"its first 8 bytes say a header of {length} bytes, but {self.size_bytes - 8} follow")
        header = bytearray(length)
        self.read_into(memoryview(header), 8)
        if not header.startswith(b"{"):
            self._refuse("expected a header that starts with '{'")
        table = parse_json(bytes(header.rstrip(b" ")), self._name)
        assert isinstance(table, dict)  # as it starts with a brace
        self._check_metadata(table.pop("__metadata__", {}))
        if not 1 <= len(table) <= MAX_TENSORS:
            self._refuse(f"expected 1 to {MAX_TENSORS} tensors, found {len(table)}")
        entries = []
        for name, value in table.items():
            self._pause()
            entries.append(_parse_entry(name, value, data_start=8 + length))
        self._check_coverage(entries, data_start=8 + length)
        return {entry.name: entry for entry in entries}

    def _check_metadata(self, metadata: object) -> None:
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise InvalidAdapter("__metadata__", "expected strings by name")

    def _check_coverage(self, entries: list[TensorEntry], *, data_start: int) -> None:
        end = data_start
        for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size_bytes)):  # empty ones first
            if entry.offset != end:
                raise InvalidAdapter(
                    entry.name, f"its data starts at byte {entry.offset}, expected {end}: no gap and no overlap"
                )
            end += entry.size_bytes
        if end != self.size_bytes:
            self._refuse(f"expected {end} bytes by its header, found {self.size_bytes}")

    def _refuse(self, problem: str) -> NoReturn:
        raise InvalidAdapter(self._name, problem)


def _parse_entry(name: str, value: object, *, data_start: int) -> TensorEntry:
    _check_name(name)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(name, "expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _FLOATS and dtype not in _INTEGERS):
        raise InvalidAdapter(name, f"expected dtype {', '.join((*_FLOATS, *_INTEGERS))}, found {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise InvalidAdapter(name, f"expected a shape of at most {MAX_DIMENSIONS} sizes, found {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidAdapter(name, f"expected data_offsets [begin, end], found {shown(offsets)}")
    size = math.prod(shape) * _item_bytes(dtype)
    if offsets[1] - offsets[0] != size:
        raise InvalidAdapter(
            name, f"expected {size} bytes for {dtype} of shape {shape}, its offsets hold {offsets[1] - offsets[0]}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], size)


def _item_bytes(dtype: str) -> int:
    return _FLOATS[dtype].size_bytes if dtype in _FLOATS else np.dtype(_INTEGERS[dtype]).itemsize


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME_BYTES or not is_plain(name) or ".." in name:
        raise InvalidAdapter(
            shown(name), f"expected a tensor name of 1 to {MAX_NAME_BYTES} printable ASCII characters without '..'"
        )


def _are_sizes(value: object) -> bool:
    """Whether it is a list of integers that can be sizes or offsets."""
    if not isinstance(value, list):
        return False
    for item in value:
        if type(item) is not int or not 0 <= item < _NO_SIZE:
            return False
    return True


def _convert(dtype: str, bits: NDArray[np.unsignedinteger], values: NDArray[np.float32]) -> None:
    """Writes as float32 into `values` what is stored in 16 or 64 bits."""
    if dtype in ("F16", "F64"):
        values[:] = bits.view(np.float16 if dtype == "F16" else np.float64)
    else:
        np.left_shift(bits, 16, out=values.view(np.uint32), dtype=np.uint32)


def require_finite(entry: TensorEntry, bits: NDArray[np.unsignedinteger]) -> None:
    """Raises InvalidAdapter, naming the tensor, unless each of its values is finite and below 2^64."""
    kind = _FLOATS[entry.dtype]
    # Of magnitudes, integers are ordered as their floats: the largest of the negative ones, which are the largest
    # without a sign, and that of the others, the largest with one.
    largest = max(int(bits.max()) & kind.magnitude, int(bits.view(f"i{bits.itemsize}").max()))
    if largest >= kind.infinity:
        raise InvalidAdapter(entry.name, "expected finite values, found NaN or infinity")
    if largest >= kind.too_large:
        raise InvalidAdapter(entry.name, "expected values below 2^64 in magnitude: larger ones overflow")
