"""The head in compiled steps: close everywhere, exact where it decides, whatever the neighbours."""

import pytest
import torch

pytest.importorskip("numba")
from hotshoe.kernels import reference
from hotshoe.kernels.cpu import int8_head
from hotshoe.kernels.cpu.decode_team import DecodeTeam
from hotshoe.server.model.compiled_head import CompiledHead

pytestmark = pytest.mark.skipif(not int8_head.available(), reason="needs AVX512-VNNI")

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
    return CompiledHead(team, norm=norm, eps=EPS, rows=weight, tiles=int8_head.pack(weight))


@pytest.mark.parametrize("rows", [[], [3], [0, 2, 39], list(range(16)), list(range(39, 4, -1))])
def test_the_largest_logit_is_exact_and_the_others_are_close(
    head: CompiledHead, weight: torch.Tensor, norm: torch.Tensor, rows: list[int]
) -> None:
    hidden = 3 * torch.randn(40, SIZE, generator=torch.Generator().manual_seed(3))
    read = head.logits(hidden, torch.tensor(rows, dtype=torch.int64))
    logits = read.values.double()
    x = reference.rms_norm(hidden[rows].double(), norm.double(), EPS)
    expected = x @ weight.double().T
    assert logits.shape == (len(rows), VOCAB) and read.values.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.025 * float(weight.float().norm(dim=1).mean()))
    likeliest = expected.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(logits.gather(1, likeliest), expected.gather(1, likeliest), rtol=0, atol=1e-4)
    assert read.finite == [True] * len(rows)
    assert read.likeliest == likeliest.flatten().tolist()


def test_two_logits_that_8_bits_cannot_tell_apart_keep_their_order(team: DecodeTeam) -> None:
    weight = torch.zeros(VOCAB, SIZE, dtype=torch.bfloat16)
    weight[[7, 300], 0] = 25.0
    weight[[7, 300], 1] = torch.tensor([0.01, 0.02], dtype=torch.bfloat16)
    hidden = torch.zeros(1, SIZE)
    hidden[0, :2] = 1.0
    tiles = int8_head.pack(weight)
    assert torch.equal(
        tiles[0, 0, : 32 * 32].view(8, 2, 16, 4)[0, 0, 7], tiles[9, 0, : 32 * 32].view(8, 2, 16, 4)[0, 0, 12]
    )
    head = CompiledHead(team, norm=torch.ones(SIZE), eps=EPS, rows=weight, tiles=tiles)
    assert head.logits(hidden, torch.tensor([0])).likeliest == [300]


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_the_error_that_is_allowed_for_is_never_passed(spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = (spread * torch.randn(VOCAB, SIZE, generator=generator)).bfloat16()
    tiles = int8_head.pack(weight)
    head = CompiledHead(DecodeTeam(1), norm=torch.ones(SIZE), eps=EPS, rows=weight, tiles=tiles)
    hidden = torch.randn(64, SIZE, generator=generator)
    off = (
        head.logits(hidden, torch.arange(64)).values
        - reference.rms_norm(hidden, torch.ones(SIZE), EPS) @ weight.float().T
    ).abs()
    x = reference.rms_norm(hidden, torch.ones(SIZE), EPS).view(64, -1, int8_head.DEPTH)
    allowed = (int8_head.likely_error(tiles).square() * x.square().sum(dim=2)).sum(dim=1).sqrt()
    assert 0 < float((off / allowed[:, None]).max()) < 0.7


def test_a_row_keeps_every_bit_when_its_neighbours_change(head: CompiledHead) -> None:
    hidden = torch.randn(20, SIZE)
    alone = head.logits(hidden, torch.tensor([7])).values.clone()
    hidden[:7] = float("nan")
    hidden[8:] *= 100
    among = head.logits(hidden, torch.arange(20))
    assert torch.equal(alone[0], among.values[7])
    assert bool(among.values[0].isnan().all())
    assert among.finite == [False] * 7 + [True] * 13


def test_of_equal_logits_the_first_is_the_likeliest(team: DecodeTeam, norm: torch.Tensor) -> None:
    weight = torch.zeros(VOCAB, SIZE, dtype=torch.bfloat16)
    weight[[70, 85, 300, 671]] = 1.0
    head = CompiledHead(team, norm=norm, eps=EPS, rows=weight, tiles=int8_head.pack(weight))
    assert head.logits(torch.ones(2, SIZE), torch.tensor([0, 1])).likeliest == [70, 70]


def test_a_row_with_an_infinite_input_is_not_finite(head: CompiledHead) -> None:
    hidden = torch.ones(2, SIZE)
    hidden[1, 3] = float("inf")
    assert head.logits(hidden, torch.tensor([0, 1])).finite == [True, False]
