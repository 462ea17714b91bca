import json

import pytest

from hotshoe.clients import evaluations
from hotshoe.clients.evaluations import EVALUATION_TYPE, SUMMARY, report_request
from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.referrer import EVALUATION_TYPE as REGISTRYS_TYPE


def summary(report: object) -> str:
    request = report_request("a", json.dumps(report).encode(), file_name="x.json")
    return request.annotations.get(SUMMARY, "")


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"metrics": {"accuracy": 0.912345, "f1": 1}, "seconds": 3}, "accuracy 0.9123, f1 1"),
        ({"loss": 2.5, "name": "x", "passed": True, "nan": float("nan")}, "loss 2.5"),
        (
            {"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "arc"}, "mmlu": {"acc": 0.25}}},
            "arc acc 0.5, mmlu acc 0.25",
        ),
        ({f"m{number}": number for number in range(20)}, ", ".join(f"m{number} {number}" for number in range(8))),
        ({"a\nb": 1, "x" * 61: 2, "results": None, "ok": 3}, "ok 3"),
        ({"results": {"arc": 7}, "metrics": 9}, ""),
        ({}, ""),
    ],
)
def test_a_reports_first_figures_are_its_summary(report: object, said: str) -> None:
    assert summary(report) == said


def test_bytes_are_kept_as_they_are_and_values_as_json() -> None:
    assert EVALUATION_TYPE == REGISTRYS_TYPE
    request = report_request("a:v1", b' {"b": 1}', file_name="x.json")
    assert (request.document, request.artifact_type, request.file_name) == (b' {"b": 1}', EVALUATION_TYPE, "x.json")
    assert json.loads(report_request("a", {"b": 1}, file_name="x.json").document) == {"b": 1}


@pytest.mark.parametrize("document", [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_not_sent(document: bytes) -> None:
    with pytest.raises(ValueError, match="x.json: expected"):
        report_request("a", document, file_name="x.json")


def test_the_latest_report_of_a_file_name_counts() -> None:
    def referrer(digest: str, name: str, kind: str = EVALUATION_TYPE) -> registry_pb2.Referrer:
        return registry_pb2.Referrer(
            digest=digest, artifact_type=kind, document=registry_pb2.Blob(file_name=name, digest=digest)
        )

    adapter = registry_pb2.Adapter(
        referrers=[referrer("3", "a"), referrer("2", "b"), referrer("1", "a"), referrer("0", "c", "text/x")]
    )
    assert [one.digest for one in evaluations.evaluations(adapter)] == ["3", "2"]
