"""A step's inputs in one block of memory, laid out alike on the host and on the device: one copy takes all of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch, PagedBatch, tile_sequences
from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.server.model.decoder_input import DecoderInput

if TYPE_CHECKING:
    from hotshoe.server.adapters.fixed_adapter_slots import SlotBatch

_ALIGNMENT = 16
NOWHERE = -1  # the kv slot of a row that only fills a bucket


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How much a step's block holds; a step may be smaller, and the rest then does nothing."""

    rows: int
    logit_rows: int
    tiles: int  # of attention
    sequences: int
    pages: int  # of one sequence
    entries: int  # of `row_tiles.TileArrays`
    riders: int  # 64-bit numbers beside each row of logits

    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name → shape and type; 64-bit numbers first, what may be copied in part last."""
        int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
        return {
            "riders": ((self.logit_rows, self.riders), np.dtype(np.float64)),
            "token_ids": ((self.rows,), int32),
            "positions": ((self.rows,), int32),
            "far_rows": ((self.rows,), int32),
            "kv_slots": ((self.rows,), int32),
            "logit_rows": ((self.logit_rows,), int32),
            "attention": ((self.tiles, 4), int32),
            "count": ((1,), int32),
            "entries": ((self.entries, 3), int32),
            "weights": ((self.entries,), float32),
            "row_entries": ((self.rows, 2), int32),
            "tables": ((self.pages, self.sequences), int32),  # page by page: the step's longest context ends the copy
        }


class StepBuffers:
    """One block on the host, page-locked where the device is a GPU, and one on the device; both stay where they are."""

    def __init__(self, sizes: StepSizes, device: torch.device) -> None:
        self.sizes = sizes
        fields = sizes.fields()
        lengths = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in fields.values()]
        self._bytes = sum(map(_aligned, lengths[:-1])) + lengths[-1]
        self._host = torch.empty(self._bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(self._bytes, dtype=torch.uint8, device=device)
        self.host: dict[str, NDArray[np.generic]] = {}
        self.device: dict[str, Tensor] = {}
        offset = 0
        for name, (shape, dtype) in fields.items():
            size = int(np.prod(shape)) * dtype.itemsize
            kind = getattr(torch, dtype.name)
            self.host[name] = self._host[offset : offset + size].view(kind).view(shape).numpy()
            self.device[name] = self._device[offset : offset + size].view(kind).view(shape)
            offset += _aligned(size)

    @property
    def row_tiles(self) -> RowTiles:
        found = self.device
        return RowTiles(found["count"], found["entries"], found["weights"], found["row_entries"])

    def clear(self) -> None:
        """Fills the block with rows that do nothing, on the device too."""
        self._host.zero_()
        self._idle(rows=0, tiles=0)
        self._device.copy_(self._host)

    def write(self, inputs: DecoderInput, adapters: "SlotBatch | None", riders: NDArray[np.float64] | None) -> None:
        """Fills the block with a step that fits, the rest with rows that do nothing, and begins the copy.

        A row that only fills up reads token 0 and the null page, and writes its key and value nowhere.
        """
        batch, host = paged(inputs.attention), self.host
        rows, logit_rows = batch.num_rows, inputs.logit_rows.shape[0]
        tiles = tile_sequences(batch.rows, batch.contexts)
        host["token_ids"][:rows] = inputs.token_ids.numpy()
        host["positions"][:rows] = inputs.positions.numpy()
        host["far_rows"][:rows] = 0 if inputs.far_rows is None else inputs.far_rows.numpy()
        host["kv_slots"][:rows] = inputs.kv_slots.numpy()
        host["logit_rows"][:logit_rows] = inputs.logit_rows.numpy()
        host["logit_rows"][logit_rows:] = 0
        host["attention"][: len(tiles)] = tiles
        self._idle(rows=rows, tiles=len(tiles))
        if riders is not None:
            host["riders"][:logit_rows] = riders
        count = 0 if adapters is None else len(adapters.tiles.entries)
        host["count"][0] = count
        if adapters is not None:
            host["entries"][:count] = adapters.tiles.entries
            host["weights"][:count] = adapters.tiles.weights
            host["row_entries"][:rows] = adapters.tiles.row_entries
            host["row_entries"][rows:] = count
        pages, sequences = batch.tables.shape[1], len(batch.rows)
        host["tables"][:pages] = 0
        host["tables"][:pages, :sequences] = batch.tables.T
        end = self._bytes - (self.sizes.pages - pages) * self.sizes.sequences * 4
        self._device[:end].copy_(self._host[:end], non_blocking=True)

    def _idle(self, *, rows: int, tiles: int) -> None:
        """Has the rows and tiles from these on do nothing."""
        host = self.host
        host["token_ids"][rows:] = host["positions"][rows:] = 0
        host["kv_slots"][rows:] = NOWHERE
        idle = np.arange(tiles, self.sizes.tiles)
        host["attention"][tiles:] = np.stack((idle, idle * 0 + 1, idle, idle * 0 + 1), axis=1)


def _aligned(size: int) -> int:
    """Kernels are compiled anew for addresses that 16 does not divide: here there are none."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def paged(attention: AttentionBatch | PagedBatch) -> PagedBatch:
    """The batch by pages, whatever it comes as."""
    return attention if isinstance(attention, PagedBatch) else attention.by_pages()


def sizes_of(inputs: DecoderInput, adapters: "SlotBatch | None", riders: NDArray[np.float64] | None) -> StepSizes:
    """What one step takes, exactly."""
    batch = paged(inputs.attention)
    return StepSizes(
        rows=batch.num_rows,
        logit_rows=inputs.logit_rows.shape[0],
        tiles=len(tile_sequences(batch.rows, batch.contexts)),
        sequences=len(batch.rows),
        pages=batch.tables.shape[1],
        entries=0 if adapters is None else len(adapters.tiles.entries),
        riders=0 if riders is None else riders.shape[1],
    )
