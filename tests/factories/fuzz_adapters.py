"""A seeded fuzzer of adapters: mutants of safetensors headers, and whole publishes of mutated files.

    python tests/factories/fuzz_adapters.py --headers 1000000 --publishes 100000 --seed 1

Nothing may crash, hang, or be accepted that does not come back as it was sent. The tests take a share of it.
"""

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from store_adapters import CONFIG, WEIGHTS, ia3_files, lora_files, publish, small_base

from hotshoe.registry.errors import RegistryError
from hotshoe.registry.formats.lowering import inspect_adapter
from hotshoe.registry.registry import Registry
from hotshoe.registry.validation import TensorFile

SLOW_SECONDS = 5.0
ODD: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 7, 8, 1 << 31, 1 << 47, 1 << 63, 1 << 64, 10**400, 0.5, 1e308, -0.0),
    *("", "a", "F16", "BF16", "F64", "I8", "LORA", "IA3", "q_proj", ".*", "(", "\x00", "\u202e", "é", "a" * 300, ".."),
    *([], {}, [0], [1, 2], [[1]], {"a": 1}, [0, 1 << 48], ["q_proj"], [None]),
)


@dataclass(slots=True)
class Tally:
    """What became of mutants. `surprises` must stay empty."""

    tried: int = 0
    accepted: int = 0
    slowest_seconds: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)

    def take(self, seed: object, check: Callable[[], bool]) -> None:
        """Runs one mutant; `check` says whether it was accepted, or raises AssertionError if it may not be."""
        self.tried += 1
        started = time.thread_time()
        try:
            self.accepted += check()
        except RegistryError as refusal:
            self.refusals[type(refusal).__name__] += 1
        except Exception as error:
            self.surprises.append(f"{seed}: {type(error).__name__}: {error}")
        seconds = time.thread_time() - started
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        if seconds > SLOW_SECONDS:
            self.surprises.append(f"{seed}: took {seconds:.1f} s")


def fuzz_headers(count: int, *, seed: int = 0) -> Tally:
    """Mutants of small files through `TensorFile`; what it accepts the safetensors library must read alike."""
    tally = Tally()
    sound = [lora_files(1)[WEIGHTS], ia3_files()[WEIGHTS]]
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        data = mutated_file(rng.choice(sound), rng)
        tally.take(f"header {seed} {number}", lambda data=data: _accepts(data))
    return tally


def _accepts(data: bytes) -> bool:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        entries = TensorFile(file, max_bytes=1 << 20).entries
    theirs = dict(safetensors.deserialize(data))
    assert theirs.keys() == entries.keys(), "other names than the library's"
    for name, entry in entries.items():
        assert (list(entry.shape), entry.dtype) == (theirs[name]["shape"], theirs[name]["dtype"]), name
        assert data[entry.offset : entry.offset + entry.size_bytes] == bytes(theirs[name]["data"]), name
    return True


def fuzz_publishes(count: int, *, seed: int = 0, root: Path) -> Tally:
    """Publishes of mutated configs, weights, names, tags and annotations; what is accepted must come back."""
    tally = Tally()
    registry = Registry(root)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        tally.take(f"publish {seed} {number}", lambda rng=rng: _publishes(registry, rng))
    if not registry.fsck().is_clean:
        tally.surprises.append("the store is not clean afterwards")
    registry.close()
    return tally


def _publishes(registry: Registry, rng: random.Random) -> bool:
    files = mutated_adapter(rng)
    name = rng.choice(["a", "team/sql", "x" * 200, odd_text(rng)])
    tags = rng.choice([[], ["v1"], ["latest", "b.c"], [odd_text(rng)]])
    annotations = rng.choice([{}, {"org.example.by": "x"}, {odd_text(rng): odd_text(rng)}])
    record, _ = publish(registry, name, files, tags=tags, annotations=annotations)
    stored = registry.adapter_files(record.digest)
    assert {key: path.read_bytes() for key, path in stored.items() if key in files} == files, "other bytes came back"
    assert registry.resolve(f"{name}@{record.digest}").digest == record.digest
    for tag in tags:
        assert registry.resolve(f"{name}:{tag}").digest == record.digest
    again, created = publish(registry, name, files, tags=tags, annotations=annotations)
    assert again.digest == record.digest and not created, "equal bytes gave another digest"
    summary = inspect_adapter(stored, small_base())
    assert (summary.kind, summary.rank) == (record.kind, record.rank)
    return True


def mutated_adapter(rng: random.Random) -> dict[str, bytes]:
    """The files of a small adapter with a few changes."""
    files = dict(lora_files(rng.randrange(3)) if rng.random() < 0.7 else ia3_files())
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        which = rng.random()
        if which < 0.55:
            files[CONFIG] = mutated_config(files[CONFIG], rng)
        elif which < 0.95:
            files[WEIGHTS] = mutated_file(files[WEIGHTS], rng)
        else:
            files[rng.choice([CONFIG, WEIGHTS, "README.md"])] = rng.randbytes(rng.randrange(40))
    return files


def mutated_config(data: bytes, rng: random.Random) -> bytes:
    """Another value, field or byte in a config."""
    try:
        config = json.loads(data)
    except ValueError:
        return mutated_bytes(data, rng)
    if not isinstance(config, dict) or rng.random() < 0.15:
        return mutated_bytes(data, rng)
    known = [*config, "rank_pattern", "use_rslora", "bias", "modules_to_save", "trainable_token_indices", "use_dora"]
    key = rng.choice([*known, odd_text(rng)])
    if rng.random() < 0.2:
        config.pop(key, None)
    else:
        config[key] = odd_value(rng)
    return json.dumps(config, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def mutated_file(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a change in its bytes, its header's text, its header's values, or its numbers."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return mutated_bytes(data, rng)
    body = data[8 + length :]
    choice = rng.random()
    if choice < 0.2 or not header or not isinstance(header, dict):
        return mutated_bytes(data, rng)
    if choice < 0.3:
        return (length + rng.choice([-8, -1, 1, 8, 1 << 20, 1 << 62])).to_bytes(8, "little", signed=True) + data[8:]
    if choice < 0.4:
        return _joined(mutated_bytes(data[8 : 8 + length], rng), body)
    if choice < 0.5:
        return data[: 8 + length] + mutated_numbers(body, rng)
    for _ in range(rng.choice([1, 1, 2])):
        _mutate_entry(header, rng)
    text = json.dumps(header, separators=rng.choice([(",", ":"), (", ", ": ")])).encode()
    if rng.random() < 0.1:
        text = text.replace(b"{", b'{"a":1,"a":2,', 1)
    text += b" " * rng.choice([0, 0, 1, -len(text) % 8])
    return _joined(text, body[: rng.choice([len(body), len(body), len(body) // 2])] + bytes(rng.choice([0, 0, 0, 3])))


def _joined(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def _mutate_entry(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice([key for key in header] or ["a"])
    entry = header.get(name)
    what = rng.randrange(6)
    if what == 0 or not isinstance(entry, dict):
        header[odd_text(rng)] = header.pop(name, None)
    elif what == 1:
        header[name] = odd_value(rng)
    elif what == 2:
        entry[rng.choice(["dtype", "shape", "data_offsets", odd_text(rng)])] = odd_value(rng)
    elif what == 3 and isinstance(entry.get("shape"), list) and entry["shape"]:
        entry["shape"] = rng.choice(
            [entry["shape"][::-1], entry["shape"] + [1], [1, *entry["shape"]], entry["shape"][1:]]
        )
    elif what == 4:
        header["__metadata__"] = rng.choice([{"a": "b"}, odd_value(rng)])
    else:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], header[name]


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled or added."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[place : place + rng.choice([1, 8, 1000])]
        elif what == 2:
            changed[place:place] = changed[place : place + rng.choice([1, 8, 100])]
        else:
            changed[place:place] = rng.randbytes(rng.choice([1, 8]))
    return bytes(changed)


def mutated_numbers(body: bytes, rng: random.Random) -> bytes:
    """Some numbers infinite, not a number, huge or tiny."""
    whole = len(body) // 4 * 4
    if not whole:
        return body
    values = np.frombuffer(body[:whole], "<f4").copy()
    values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0, 2.0**64, 1.0])
    return values.tobytes() + body[whole:]


def odd_value(rng: random.Random) -> Any:
    """What a field should not be, mostly; a copy, for others may change it."""
    return copy.deepcopy(rng.choice(ODD))


def odd_text(rng: random.Random) -> str:
    """What a name should not be, mostly."""
    texts = [text for text in ODD if isinstance(text, str)]
    return rng.choice(
        [*texts, "../x", "/etc", "A", "a__b", "a:b", "sha256-" + "0" * 64, "a\nb", "dev.hotshoe.adapter.kind"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=1_000_000)
    parser.add_argument("--publishes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shared = Path("/dev/shm")  # publishes sync, and a disk would make them slow
    root = Path(tempfile.mkdtemp(prefix="hotshoe-fuzz-", dir=shared if shared.is_dir() else None))
    try:
        tallies: Mapping[str, Tally] = {
            "headers": fuzz_headers(arguments.headers, seed=arguments.seed),
            "publishes": fuzz_publishes(arguments.publishes, seed=arguments.seed, root=root / "registry"),
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for name, tally in tallies.items():
        refused = ", ".join(f"{count} {reason}" for reason, count in tally.refusals.most_common())
        print(f"{name}: {tally.tried} tried, {tally.accepted} accepted, refused: {refused or 'none'}")
        print(f"{name}: slowest {tally.slowest_seconds:.2f} s, surprises: {len(tally.surprises)}")
        for surprise in tally.surprises[:20]:
            print(f"  {surprise}")
    return 1 if any(tally.surprises for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
