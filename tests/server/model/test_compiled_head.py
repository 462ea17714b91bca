"""The head in compiled steps: every logit from unrounded inputs, whatever the neighbours."""

import pytest
import torch

pytest.importorskip("numba")
from hotshoe.kernels import reference
from hotshoe.kernels.cpu import amx, dense_amx
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.server.model.compiled_head import CompiledHead

pytestmark = pytest.mark.skipif(not amx.available(), reason="needs AMX")

VOCAB, SIZE, EPS = 32 * 21, 192, 1e-5


@pytest.fixture(params=[1, 2, 3], ids=lambda team: f"{team} threads")
def team(request: pytest.FixtureRequest) -> DecodeTeam:
    return DecodeTeam(request.param)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(VOCAB, SIZE, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.fixture
def norm() -> torch.Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(2)) + 0.5


@pytest.fixture
def head(team: DecodeTeam, weight: torch.Tensor, norm: torch.Tensor) -> CompiledHead:
    return CompiledHead(team, norm=norm, eps=EPS, blocks=dense_amx.pack(weight), vocab_size=VOCAB)


@pytest.mark.parametrize("rows", [[], [3], [0, 2, 39], list(range(16)), list(range(39, 4, -1))])
def test_logits_are_those_of_unrounded_inputs(
    head: CompiledHead, weight: torch.Tensor, norm: torch.Tensor, rows: list[int]
) -> None:
    hidden = 3 * torch.randn(40, SIZE, generator=torch.Generator().manual_seed(3))
    read = head.logits(hidden, torch.tensor(rows, dtype=torch.int64))
    logits = read.values
    x = reference.rms_norm(hidden[rows].double(), norm.double(), EPS)
    expected = x @ weight.double().T
    assert logits.shape == (len(rows), VOCAB) and logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-3)  # rounded inputs would be off by 0.1
    assert read.finite == [True] * len(rows)
    assert read.likeliest == logits.argmax(dim=1).tolist()


def test_a_row_keeps_every_bit_when_its_neighbours_change(head: CompiledHead) -> None:
    hidden = torch.randn(20, SIZE)
    alone = head.logits(hidden, torch.tensor([7])).values
    hidden[:7] = float("nan")
    hidden[8:] *= 100
    among = head.logits(hidden, torch.arange(20))
    assert torch.equal(alone[0], among.values[7])
    assert bool(among.values[0].isnan().all())
    assert among.finite == [False] * 7 + [True] * 13


def test_of_equal_logits_the_first_is_the_likeliest(team: DecodeTeam, norm: torch.Tensor) -> None:
    weight = torch.zeros(VOCAB, SIZE, dtype=torch.bfloat16)
    weight[[70, 85, 300, 671]] = 1.0
    head = CompiledHead(team, norm=norm, eps=EPS, blocks=dense_amx.pack(weight), vocab_size=VOCAB)
    assert head.logits(torch.ones(2, SIZE), torch.tensor([0, 1])).likeliest == [70, 70]


def test_an_infinite_logit_is_not_finite(head: CompiledHead) -> None:
    hidden = torch.ones(2, SIZE)
    hidden[1, 3] = float("inf")
    assert head.logits(hidden, torch.tensor([0, 1])).finite == [True, False]
