"""Step batches against arrays built one row at a time."""

import torch
from running_engine import make_request

from hotshoe.registry.formats.lowered import KvPrefix
from hotshoe.server.adapters.placed_adapter import SequenceTerms
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.engine.sequence import Sequence
from hotshoe.server.engine.step_batch import build_step_batch, by_slots, page_slots, position_slots
from hotshoe.server.engine.step_plan import Chunk

PAGE = 4


def make_chunk(blocks: KvBlocks, tokens: list[int], start: int, end: int, *, num_logits: int = 1) -> Chunk:
    sequence = Sequence(make_request(tokens), 0, order=(1, 0), leader=None, eos=())
    sequence.table = blocks.open_table()
    assert blocks.grow(sequence.table, end)
    return Chunk(sequence, start, end, num_logits=num_logits, draws=True, decodes=end - start == 1)


def expected_slots(blocks: KvBlocks, chunk: Chunk, positions: range) -> list[int]:
    assert chunk.sequence.table is not None
    pages = blocks.pages(chunk.sequence.table).tolist()
    return [pages[position // PAGE] * PAGE + position % PAGE for position in positions]


def make_blocks() -> KvBlocks:
    blocks = KvBlocks(num_pages=40, page_tokens=PAGE, max_sequences=8, max_table_pages=10)
    blocks._free[:] = blocks._free.reshape(-1, 2)[::-1].ravel()  # pages out of order
    return blocks


def test_rows_slots_and_logits_are_those_of_each_sequence() -> None:
    blocks = make_blocks()
    chunks = [
        make_chunk(blocks, list(range(100, 106)), 5, 6),
        make_chunk(blocks, [7], 0, 1),
        make_chunk(blocks, list(range(200, 211)), 2, 11, num_logits=3),
        make_chunk(blocks, list(range(300, 304)), 0, 4, num_logits=4),
    ]
    batch = build_step_batch(chunks, blocks, by_slots)
    inputs, attention = batch.inputs, batch.inputs.attention
    assert inputs.token_ids.tolist() == [105, 7, *range(202, 211), *range(300, 304)]
    assert inputs.positions.tolist() == [5, 0, *range(2, 11), *range(4)]
    assert inputs.kv_slots.tolist() == [
        slot for chunk in chunks for slot in expected_slots(blocks, chunk, range(chunk.start, chunk.end))
    ]
    assert inputs.logit_rows.tolist() == [0, 1, 8, 9, 10, 11, 12, 13, 14]
    assert attention.num_decodes == 2 and attention.decode_lengths.tolist() == [6, 1]
    assert attention.decode_slots.tolist() == [
        expected_slots(blocks, chunks[0], range(6)),
        [*expected_slots(blocks, chunks[1], range(1)), 0, 0, 0, 0, 0],
    ]
    assert [(segment.start, segment.end) for segment in attention.prefills] == [(2, 11), (11, 15)]
    for segment, chunk in zip(attention.prefills, chunks[2:], strict=True):
        assert segment.slots.tolist() == expected_slots(blocks, chunk, range(chunk.end))
    assert [(s.start, s.end, s.stack) for s in batch.segments] == [(0, 1, ()), (1, 2, ()), (2, 11, ()), (11, 15, ())]
    assert inputs.embedding_rows is None and inputs.embeddings is None
    for tensor in (inputs.token_ids, inputs.positions, inputs.kv_slots, inputs.logit_rows, attention.decode_slots):
        assert tensor.dtype is torch.int64
    assert 0 not in page_slots(blocks, range(1, 41))


def test_a_step_without_decodes_has_empty_decode_arrays() -> None:
    blocks = make_blocks()
    attention = build_step_batch([make_chunk(blocks, [1, 2, 3], 0, 3)], blocks, by_slots).inputs.attention
    assert attention.num_decodes == 0 and tuple(attention.decode_slots.shape) == (0, 0)
    assert attention.decode_lengths.dtype is torch.int64 and attention.num_rows == 3


def test_learned_embeddings_stand_between_prefix_and_prompt() -> None:
    blocks = make_blocks()
    uses = [AdapterUse(name, name, f"sha256:{name}") for name in "abc"]
    learned = torch.arange(12.0).reshape(6, 2)
    soft = [
        SequenceTerms(kv_prefix=None, prompt_embeddings=learned[:4]),
        SequenceTerms(kv_prefix=KvPrefix(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)), prompt_embeddings=None),
        SequenceTerms(kv_prefix=None, prompt_embeddings=learned[4:]),
    ]
    sequence = Sequence(make_request([50, 51], adapters=uses), 0, order=(1, 0), leader=None, eos=())
    sequence.attach((3, 1, 2), soft)
    sequence.table = blocks.open_table()
    blocks.grow(sequence.table, 11)
    decode = make_chunk(blocks, [9], 0, 1)
    chunks = [decode, Chunk(sequence, 5, 11, num_logits=1, draws=True, decodes=False)]
    batch = build_step_batch(chunks, blocks, by_slots)
    assert batch.inputs.positions.tolist() == [0, 5, 6, 7, 8, 9, 10]
    assert batch.inputs.token_ids.tolist() == [9, 0, 0, 0, 0, 50, 51]
    assert batch.inputs.embedding_rows is not None and batch.inputs.embeddings is not None
    assert batch.inputs.embedding_rows.tolist() == [1, 2, 3, 4]
    assert torch.equal(batch.inputs.embeddings, learned[2:])
    assert batch.segments[1].stack == ((3, 1.0), (1, 1.0), (2, 1.0))


def test_position_slots_follow_the_table() -> None:
    blocks = make_blocks()
    chunk = make_chunk(blocks, [1] * 9, 0, 9)
    assert chunk.sequence.table is not None
    assert position_slots(blocks, chunk.sequence.table, 3, 9).tolist() == expected_slots(blocks, chunk, range(3, 9))
