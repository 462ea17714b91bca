import json
import struct
import sys
import tempfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.strict_json import read_config, shown
from hotshoe.registry.validation import MAX_HEADER_BYTES, TensorFile

MAX_BYTES = 1 << 20
FILE = "adapter_model.safetensors"


def packed(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of that header, JSON or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def one(shape=(2,), *, dtype="F32", offsets=(0, 8), name="x", **extra) -> bytes:
    """A file of eight zero bytes of data and one tensor, sound unless told otherwise."""
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}
    return packed({name: entry}, bytes(8))


def two(first: list[int], second: list[int], *, data: int = 16) -> bytes:
    """A file of two tensors of two floats each, at those offsets."""
    entries = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets} for name, offsets in (("a", first), ("b", second))
    }
    return packed(entries, bytes(data))


def opened(data: bytes, *, max_bytes: int = MAX_BYTES) -> TensorFile:
    file = tempfile.TemporaryFile(buffering=0)
    file.write(data)
    return TensorFile(file, max_bytes=max_bytes)


SOUND = one()

# Each: the file's bytes, and the field that must be named.
MALFORMED = {
    "empty": (b"", FILE),
    "shorter than its length field": (b"\x00" * 7, FILE),
    "no header": (struct.pack("<Q", 0), FILE),
    "an empty header": (packed({}), FILE),
    "only metadata": (packed({"__metadata__": {"format": "pt"}}), FILE),
    "a header longer than the file": (struct.pack("<Q", 100) + b"{}", FILE),
    "a header of 2^64 - 1 bytes": (struct.pack("<Q", 2**64 - 1) + b"{}", FILE),
    "a header just over the limit": (packed(b"{" + b" " * MAX_HEADER_BYTES), FILE),
    "leading whitespace": (packed(b" " + SOUND[8:-8], bytes(8)), FILE),
    "a byte order mark": (packed(b"\xef\xbb\xbf" + SOUND[8:-8], bytes(8)), FILE),
    "UTF-16": (packed('{"x": 1}'.encode("utf-16")), FILE),
    "a broken header": (packed(b'{"x":'), FILE),
    "text after the header": (packed(SOUND[8:-8] + b"x", bytes(8)), FILE),
    "NUL after the header": (packed(SOUND[8:-8] + b"\x00", bytes(8)), FILE),
    "a list for a header": (packed(b"[]"), FILE),
    "invalid UTF-8": (packed(b'{"\xff\xfe": 1}'), FILE),
    "the same name twice": (packed(SOUND[8:-9] + b"," + SOUND[9:-8], bytes(8)), FILE),
    "a key of an entry twice": (
        packed(b'{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        FILE,
    ),
    "nesting without end": (packed(b'{"x":' * 5_000 + b"1" + b"}" * 5_000), FILE),
    "lists without end": (packed(b'{"x":' + b"[" * 100_000), FILE),
    "NaN in the header": (packed(b'{"x":NaN}'), FILE),
    "an overflowing number": (packed(b'{"x":1e999}'), FILE),
    "a number of 10,000 digits": (packed(b'{"x":' + b"9" * 10_000 + b"}"), FILE),
    "too many tensors": (packed({f"t{index}": {} for index in range(4_097)}), FILE),
    "metadata that is no object": (packed({"__metadata__": [], "x": {}}), "__metadata__"),
    "metadata that is no text": (packed({"__metadata__": {"a": 1}, "x": {}}), "__metadata__"),
    "an entry that is no object": (packed({"x": 1}), "x"),
    "an entry without dtype": (packed({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "x"),
    "an entry with a field more": (one(note="hello"), "x"),
    "an unknown dtype": (one(dtype="F128"), "x"),
    "a dtype that is no text": (one(dtype=32), "x"),
    "8-bit integers": (one((8,), dtype="I8"), "x"),
    "booleans": (one((8,), dtype="BOOL"), "x"),
    "8-bit floats": (one((8,), dtype="F8_E4M3"), "x"),
    "4-bit floats": (one((16,), dtype="F4"), "x"),
    "64-bit complex numbers": (one((1,), dtype="C64"), "x"),
    "a zero dimension with data": (one((0,)), "x"),
    "a zero dimension beside one beyond 2^48": (one((0, 1 << 48), offsets=(0, 0)), "x"),
    "six dimensions": (one((1, 1, 1, 1, 1, 2)), "x"),
    "a thousand dimensions": (one((1,) * 999 + (2,)), "x"),
    "a negative dimension": (one((-2,)), "x"),
    "a fractional dimension": (one((2.0,)), "x"),
    "true for a dimension": (one((True, 2)), "x"),
    "text for a dimension": (one(("2",)), "x"),
    "dimensions whose product overflows 64 bits": (one((1 << 32, 1 << 32)), "x"),
    "a dimension beyond 2^48": (one((1 << 48,)), "x"),
    "a shape that is no list": (packed({"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, bytes(8)), "x"),
    "offsets that are no list": (packed({"x": {"dtype": "F32", "shape": [2], "data_offsets": 8}}, bytes(8)), "x"),
    "one offset": (one(offsets=(0,)), "x"),
    "three offsets": (one(offsets=(0, 8, 8)), "x"),
    "offsets backwards": (one(offsets=(8, 0)), "x"),
    "a negative offset": (one(offsets=(-8, 0)), "x"),
    "a negative zero": (packed(SOUND[8:-8].replace(b"[0,", b"[-0,"), bytes(8)), FILE),
    "a fractional offset": (one(offsets=(0, 8.0)), "x"),
    "offsets beyond 2^48": (one(offsets=(1 << 60, (1 << 60) + 8)), "x"),
    "a size that is not the shape's": (one(offsets=(0, 4)), "x"),
    "a size of the wrong dtype": (one(dtype="F16"), "x"),
    "data that begins late": (packed({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)), "x"),
    "a gap": (two([0, 8], [12, 20], data=20), "b"),
    "an overlap": (two([0, 8], [4, 12], data=12), "b"),
    "two tensors in one place": (two([0, 8], [0, 8], data=8), "b"),
    "data past the end of the file": (two([0, 8], [8, 16], data=12), FILE),
    "bytes after the data": (SOUND + b"\x00", FILE),
    "an empty name": (one(name=""), "''"),
    "a name with a parent folder": (one(name="../../etc/passwd"), "../../etc/passwd"),
    "a name with NUL": (one(name="a\x00b"), "'a\\x00b'"),
    "a name with a line break": (one(name="a\nb"), "'a\\nb'"),
    "a name with an escape sequence": (one(name="a\x1b[31m"), "'a\\x1b[31m'"),
    "a name with text direction marks": (one(name="a\u202eb"), "'a\\u202eb'"),
    "a name that is not ASCII": (one(name="сodе"), "'\\u0441od\\u0435'"),
    "a name with a lone surrogate": (packed(SOUND[8:-8].replace(b'"x"', b'"\\ud800"'), bytes(8)), "'\\ud800'"),
    "a name of 257 characters": (one(name="n" * 257), "n" * 257),
    "a name of a million characters": (one(name="n" * 1_000_000), "n" * 256 + "…"),
    "a pickle": (b"\x80\x04\x95" + bytes(100), FILE),
    "a zip archive": (b"PK\x03\x04" + bytes(100), FILE),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), FILE),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), FILE),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_name(name):
    data, field = MALFORMED[name]
    with pytest.raises(InvalidAdapter) as refusal:
        opened(data, max_bytes=1 << 24)
    assert refusal.value.field == field
    assert str(refusal.value).isascii() or "…" in str(refusal.value)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1_000


def test_a_sound_file_is_read():
    with opened(SOUND) as file:
        (entry,) = file.entries.values()
        assert (entry.name, entry.dtype, entry.shape, entry.num_elements) == ("x", "F32", (2,), 2)
        file.check_finite(entry)
        assert file.read(entry).tolist() == [0, 0]


def test_spaces_after_the_header_are_its_padding():
    assert list(opened(packed(SOUND[8:-8] + b"   ", bytes(8))).entries) == ["x"]


class CountingFile(TensorFile):
    """A file that knows how many of its bytes have been read."""

    count = 0

    def read_into(self, buffer, offset):
        type(self).count += len(buffer)
        super().read_into(buffer, offset)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(CountingFile, "count", 0)
    return CountingFile


def test_a_file_over_its_limit_is_refused_before_its_header_is_read(tmp_path, counting):
    path = tmp_path / FILE
    path.write_bytes(SOUND)
    with pytest.raises(InvalidAdapter, match="at most 10 bytes"):
        counting.open(path, max_bytes=10)
    assert counting.count == 0


def test_a_header_bomb_is_refused_from_its_first_8_bytes(tmp_path, counting):
    size = 95_000_000
    path = tmp_path / FILE
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", size) + b'{"a0":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},')
        file.truncate(8 + size)  # sparse: what follows is never looked at
    with pytest.raises(InvalidAdapter, match=f"say {size}") as refusal:
        counting.open(path, max_bytes=1 << 30)
    assert counting.count == 8
    assert refusal.value.field == FILE


def test_a_file_cut_anywhere_is_refused():
    data = safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    assert len(opened(data).entries) == 2
    for size in range(len(data)):
        with pytest.raises(InvalidAdapter):
            opened(data[:size])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(SOUND)
    with TensorFile.open(path, max_bytes=MAX_BYTES) as file:
        path.write_bytes(SOUND[:-4])
        with pytest.raises(InvalidAdapter, match="cut off"):
            file.check_finite(file.entries["x"])


VALUES = {
    "F64": np.array([1.5, -0.1, 1e19, 1e-300], np.float64),
    "F32": np.array([1.5, -2.0, 3e38 / 1e20, 1e-45], np.float32),
    "F16": np.array([1.5, -65504.0, 6e-8, 0.1], np.float16),
    "BF16": (np.array([1.5, -2.0, 1e18, 1e-40], np.float32).view(np.uint32) >> 16).astype(np.uint16),
}
BAD_BITS = {"F32": (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF), "F16": (0x7C00, 0xFC00, 0x7E00, 0x7C01)}
BAD_BITS["BF16"] = (0x7F80, 0xFF80, 0x7FC0, 0xFF81)
BAD_BITS["F64"] = (0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, (1 << 64) - 1)
BITS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def file_of(dtype: str, values: np.ndarray) -> TensorFile:
    size = values.nbytes
    entries = {"good": {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, size]}}
    entries["bad"] = {"dtype": dtype, "shape": [len(values)], "data_offsets": [size, 2 * size]}
    good = np.zeros_like(values)
    return opened(packed(entries, good.tobytes() + values.tobytes()), max_bytes=1 << 26)


@pytest.mark.parametrize("dtype", VALUES)
def test_finite_values_of_each_dtype_become_the_nearest_of_32_bits(dtype):
    file = file_of(dtype, VALUES[dtype])
    file.check_finite(file.entries["bad"])
    read = file.read(file.entries["bad"])
    assert read.dtype == np.float32 and read.flags.writeable
    if dtype == "BF16":
        assert ((read.view(np.uint32) >> 16) == VALUES[dtype]).all() and not (read.view(np.uint32) & 0xFFFF).any()
    else:
        assert (read == VALUES[dtype].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", VALUES)
def test_tensors_of_many_pieces_are_scaled_and_each_keeps_its_values(dtype):
    """They are read into one piece of memory, whichever order they come in and however often."""
    stored = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
    halves = np.tile(np.array([0.5, -2, 3]), 200_000)
    values = (
        (halves.astype(np.float32).view(np.uint32) >> 16).astype(stored) if dtype == "BF16" else halves.astype(stored)
    )
    file = file_of(dtype, values)
    bad, good = file.read(file.entries["bad"], scale=3.0), file.read(file.entries["good"])
    again = file.read(file.entries["bad"])
    good += 1
    assert (bad == 3 * halves).all() and (again == halves).all() and (good == 1).all()


@pytest.mark.parametrize("length", [3, 1_000_000])
@pytest.mark.parametrize("dtype", VALUES)
def test_a_value_that_is_not_finite_names_its_tensor(dtype, length):
    for bits in BAD_BITS[dtype]:
        values = np.zeros(length, BITS[dtype])
        values[length * 2 // 3] = bits
        file = file_of(dtype, values)
        file.check_finite(file.entries["good"])
        for look in (file.check_finite, file.read):
            with pytest.raises(InvalidAdapter, match="NaN or infinity") as refusal:
                look(file.entries["bad"])
            assert refusal.value.field == "bad"


@pytest.mark.parametrize("dtype", ["I32", "I64"])
def test_integers_are_read_within_their_bounds(dtype):
    kind = {"I32": np.int32, "I64": np.int64}[dtype]
    file = file_of(dtype, np.array([3, 0, 6, 4], kind))
    entry = file.entries["bad"]._replace(shape=(2, 2))
    file.check_finite(entry)
    read = file.read_integers(entry, below=(4, 7))
    assert read.dtype == np.int64 and read.tolist() == [[3, 0], [6, 4]]
    assert file.read_integers(entry, below=(7,)).tolist() == [[3, 0], [6, 4]]
    for below, found in (((3, 7), 3), ((4, 6), 6), ((6,), 6)):
        with pytest.raises(InvalidAdapter, match=f"^bad: expected integers from 0 to .*, found {found}$"):
            file.read_integers(entry, below=below)
    negative = file_of(dtype, np.array([1, -1], kind))
    with pytest.raises(InvalidAdapter, match="found -1"):
        negative.read_integers(negative.entries["bad"], below=(9,))


@pytest.mark.parametrize("dtype, largest", [("F64", 0x43EFFFFFEFFFFFFF), ("F32", 0x5F7FFFFF), ("BF16", 0x5F7F)])
def test_values_whose_products_overflow_are_refused(dtype, largest):
    for bits, accepted in ((largest, True), (largest + 1, False)):
        file = file_of(dtype, np.array([bits], BITS[dtype]))
        if accepted:
            file.check_finite(file.entries["bad"])
            assert file.read(file.entries["bad"])[0] < 2.0**64
            continue
        with pytest.raises(InvalidAdapter, match="2\\^64"):
            file.check_finite(file.entries["bad"])


SAMPLE = safetensors.numpy.save(
    {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}, metadata={"format": "pt"}
)
HEADER_END = 8 + struct.unpack("<Q", SAMPLE[:8])[0]


@st.composite
def mutated(draw):
    """The sample with a few bytes of its header changed, dropped or doubled; its length field follows half the time."""
    data = bytearray(SAMPLE)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, HEADER_END - 1))
        match draw(st.sampled_from(["set", "digit", "drop", "double"])):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "digit":
                data[at] = draw(st.sampled_from(b'0123456789[]{},:" '))
            case "drop":
                del data[at]
            case "double":
                data.insert(at, data[at])
    if draw(st.booleans()):
        data[:8] = struct.pack("<Q", max(0, HEADER_END - 8 + len(data) - len(SAMPLE)))
    return bytes(data)


@settings(max_examples=1_500, deadline=None)
@given(mutated())
def test_a_mutated_header_is_refused_or_read_as_the_library_reads_it(data):
    try:
        file = opened(data)
        ours = {name: file.read(entry) for name, entry in file.entries.items()}
    except InvalidAdapter:
        return
    try:
        theirs = safetensors.numpy.load(data)
    except SafetensorError as error:  # whatever we accept, it must accept
        raise AssertionError(f"the library refuses it: {error}") from error
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name].astype(np.float32)) for name in ours)


CONFIGS = {
    "empty": b"",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "a list": b"[]",
    "text": b'"x"',
    "a comment": b'{"a": 1} // b',
    "a trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "a key twice": b'{"r": 8, "r": 16}',
    "a key twice, deep down": b'{"a": {"r": 8, "r": 16}}',
    "NaN": b'{"lora_alpha": NaN}',
    "Infinity": b'{"lora_alpha": -Infinity}',
    "a number beyond floats": b'{"lora_alpha": 1e400}',
    "a number of 10,000 digits": b'{"r": ' + b"9" * 10_000 + b"}",
    "nested 17 deep": b'{"a":' * 17 + b"1" + b"}" * 17,
    "nested 100,000 deep": b"[" * 100_000,
    "over a mebibyte": b'{"a": "' + b"x" * (1 << 20) + b'"}',
    "a control character in text": b'{"a": "\x00"}',
    "a pickle": b"\x80\x04\x95\x00",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_malformed_config_is_refused(name, tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_bytes(CONFIGS[name])
    with pytest.raises(InvalidAdapter) as refusal:
        read_config(path)
    assert refusal.value.field == "adapter_config.json"
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1_000


def test_a_config_is_read_as_it_stands(tmp_path):
    path = tmp_path / "adapter_config.json"
    config = {"r": 8, "lora_alpha": 0.5, "nested": {"list": [1, [2, {"x": None}]]}, "text": "ünïcode"}
    path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    assert read_config(path) == config


def test_values_are_shown_short_and_without_control_characters():
    assert shown("plain") == "plain"
    assert shown("a\n\x1b[2J\u202e") == "'a\\n\\x1b[2J\\u202e'"
    assert len(shown("x" * 10_000)) < 300


def test_validation_and_inspection_import_neither_torch_nor_pickles_readers(tmp_path):
    import subprocess

    code = (
        "import sys, hotshoe.registry.formats.kind; print(sorted({'torch', 'safetensors', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_an_empty_tensor_may_lie_anywhere_and_holds_nothing():
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    empty = [{"dtype": "F16", "shape": [0, 3], "data_offsets": [at, at]} for at in (0, 8)]
    with opened(packed({"first": empty[0], "x": entry, "last": empty[1]}, bytes(8))) as file:
        for name, expected in (("x", (2,)), ("first", (0, 3)), ("last", (0, 3))):
            file.check_finite(file.entries[name])
            assert file.read(file.entries[name], scale=2.0).shape == expected
