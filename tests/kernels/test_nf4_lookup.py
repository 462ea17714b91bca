"""The lookup's instructions, run one by one over every pair of bytes: no GPU needed."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from hotshoe.kernels.triton.nf4_lookup import INSTRUCTIONS  # noqa: E402
from hotshoe.kernels.weights import NF4_VALUES  # noqa: E402

Words = np.ndarray


def permuted(a: Words, b: Words, selector: Words) -> Words:
    """PRMT in its default mode, with selectors below 8."""
    source = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros_like(a)
    for byte in range(4):
        select = (selector >> np.uint32(4 * byte)) & np.uint32(15)
        assert (select < 8).all(), "a ninth selector would copy signs"
        picked = (source >> (select.astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        result |= (picked << np.uint64(8 * byte)).astype(np.uint32)
    return result


OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": lambda a, b, c: permuted(a, b, c & np.uint32(0xFFFF)),
}


def run(codes: Words) -> dict[str, Words]:
    registers: dict[str, Words] = {"$4": codes}

    def value(operand: str) -> Words:
        return registers[operand] if operand in registers else np.full_like(codes, int(operand, 0))

    for name, operands in re.findall(r"([a-z]+\.[a-z0-9]+) ([^;]+);", INSTRUCTIONS):
        target, *sources = operands.split(", ")
        registers[target] = OPERATIONS[name](*map(value, sources))
    return registers


def test_every_byte_in_every_place_gives_nf4_s_values() -> None:
    pairs = np.arange(65_536, dtype=np.uint32)
    codes = pairs | ((pairs ^ np.uint32(0xA5C3)) << np.uint32(16))
    registers = run(codes)
    values = NF4_VALUES.bfloat16().view(torch.int16).numpy().view(np.uint16)
    for plane, shift in ((("$0", "$1"), 4), (("$2", "$3"), 0)):  # even columns lie in high nibbles
        for byte in range(4):
            found = (registers[plane[byte // 2]] >> np.uint32(16 * (byte % 2))) & np.uint32(0xFFFF)
            expected = values[(codes >> np.uint32(8 * byte + shift)) & np.uint32(15)]
            assert (found == expected).all()
