"""JSON that programs read, tables that people read, and text that cannot do harm."""

import json

import pytest

from hotshoe.clients.cli import output
from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2


def test_messages_become_plain_json_values(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = registry_pb2.Adapter(
        name="a", tags=["x"], size_bytes=2**40, annotations={"k": "v"}, blobs=[registry_pb2.Blob(file_name="f")]
    )
    output.print_json([adapter])
    text = capsys.readouterr().out
    assert text.count("\n") == 1  # one line, since nobody watches
    [data] = json.loads(text)
    assert data["size_bytes"] == 2**40
    assert data["annotations"] == {"k": "v"}
    assert data["blobs"] == [{"digest": "", "size_bytes": 0, "file_name": "f"}]
    assert list(data) == list(registry_pb2.Adapter.DESCRIPTOR.fields_by_name)


def test_durations_times_enums_and_unset_fields_have_their_form() -> None:
    usage = generation_pb2.Usage()
    usage.queue_time.FromMilliseconds(1500)
    data = output.to_data(usage)
    assert data["queue_time"] == 1.5
    assert data["adapter_load_time"] is None
    resident = residency_pb2.ResidentAdapter(tier=residency_pb2.TIER_DEVICE)
    resident.last_use_time.FromSeconds(1)
    assert output.to_data(resident)["tier"] == "device"
    assert output.to_data(resident)["last_use_time"] == "1970-01-01T00:00:01Z"
    completion = generation_pb2.Completion(finish_reason=generation_pb2.FINISH_REASON_TIME_LIMIT)
    assert output.to_data(completion)["finish_reason"] == "time_limit"
    assert output.to_data(generation_pb2.Token(token_id=3))["logprob"] is None


def test_an_enum_value_of_a_newer_server_is_its_number() -> None:
    assert output.to_data(residency_pb2.ResidentAdapter(tier=9))["tier"] == "9"  # type: ignore[arg-type]


def test_tables_are_aligned_and_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "SIZE"), [("a" * 200, 1), ("b", "")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["NAME", "SIZE"], ["a" * 200, "1"], ["b", "-"]]
    assert len({line.index(word) for line, word in zip(lines, ("SIZE", "1", "-"), strict=True)}) == 1


def test_text_from_elsewhere_cannot_move_the_cursor() -> None:
    assert output.printable("a\x1b[2Jb\rc\x07\u202e") == "a\ufffd[2Jb\ufffdc\ufffd\ufffd"
    assert output.printable("tab\tline\nпривет 🎉") == "tab\tline\nпривет 🎉"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_200_000, "4.2 MB"), (5 * 10**13, "50.0 TB")]
)
def test_sizes_are_told_in_decimal_units(count: int, text: str) -> None:
    assert output.human_bytes(count) == text
