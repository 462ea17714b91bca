"""qk-norm, rotary embedding and the cache's write, in Triton."""

import pytest
import torch

from hotshoe.kernels.kernel_task import Draw, Inputs
from hotshoe.kernels.kernel_tasks import TASKS
from hotshoe.kernels.kernel_tasks import rope_write_kv as expected
from hotshoe.kernels.triton.rope_write_kv import rope_write_kv


def inputs(device: torch.device, *, norm: bool, rotary_dim: int = 16) -> Inputs:
    """Heads of 16 dimensions, of which the first `rotary_dim` turn."""
    drawn = TASKS["rope_write_kv"].inputs(Draw(torch.Generator().manual_seed(1), device, torch.float32, True))
    angle = torch.rand(5, rotary_dim // 2, generator=torch.Generator().manual_seed(2)).repeat(1, 2).to(device) * 6.3
    drawn |= {"cos": angle.cos(), "sin": angle.sin()}
    return drawn if norm else drawn | {"q_weight": None, "k_weight": None}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rotary_dim", [16, 12, 6, 2])
def test_it_rotates_and_writes(norm: bool, rotary_dim: int, device: torch.device) -> None:
    given = inputs(device, norm=norm, rotary_dim=rotary_dim)
    query, kv = expected(given)
    torch.testing.assert_close(rope_write_kv(**given), query)
    torch.testing.assert_close(given["kv"], kv)


def test_other_slots_keep_every_bit(device: torch.device) -> None:
    given = inputs(device, norm=True)
    given["kv"].fill_(float("nan"))
    rope_write_kv(**given)
    written = torch.zeros(given["kv"].shape[0], dtype=torch.bool, device=device)
    written[given["slots"]] = True
    assert given["kv"][written].isfinite().all()
    assert given["kv"][~written].isnan().all()


def test_a_negative_slot_is_written_nowhere(device: torch.device) -> None:
    given = inputs(device, norm=False)
    _, kv = expected(
        {name: value[:4] if name in ("qkv", "cos", "sin", "slots") else value for name, value in given.items()}
    )
    given["slots"][4] = -1
    rope_write_kv(**given)
    torch.testing.assert_close(given["kv"], kv)


def test_shapes_that_disagree_are_refused(device: torch.device) -> None:
    given = inputs(device, norm=True)
    with pytest.raises(ValueError, match="both or neither"):
        rope_write_kv(**given | {"k_weight": None})
    with pytest.raises(ValueError, match="slots"):
        rope_write_kv(**given | {"slots": given["slots"][:3]})
    for wide in (0, 3, 18):
        with pytest.raises(ValueError, match="cos: expected an even number of a head's 16 dimensions"):
            rope_write_kv(**given | {"cos": torch.zeros(5, wide, device=device)})
    with pytest.raises(ValueError, match="qkv"):
        rope_write_kv(**given | {"qkv": given["qkv"][:, :-2]})
