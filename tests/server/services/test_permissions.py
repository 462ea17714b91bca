import itertools
import json
from typing import Any

import pytest

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2
from hotshoe.server.services.callers import ACTIONS, Caller, Demand, Scope
from hotshoe.server.services.permissions import demands_by_path

# What each method needs, written out once more: what changes here is a change of who may do what.
NEEDED = {
    "GenerationService": {
        "": "Tokenize GetModelInfo",
        "generate": "Generate StreamGenerate Score",
    },
    "RegistryService": {
        "read": "DownloadBlob GetAdapter ListAdapters ListTagMoves GetLineage CompareAdapters ListLeases",
        "publish": "CheckBlobs UploadBlob PublishAdapter AdoptAdapter DiagnoseAdapter AttachReferrer AdoptReferrer "
        "PullAdapter LeaseAdapter ReleaseLease",
        "read publish": "MergeAdapters MitigateAdapter",
        "tag": "UpdateTag DeleteTag RollBackTag",
        "admin": "CreateView DeleteView PushAdapter CollectGarbage CheckStore",
    },
    "ResidencyService": {
        "read": "ListResidentAdapters WatchStatus",
        "admin": "LoadAdapter UnloadAdapter",
    },
}
DEMANDS = demands_by_path()
MODULES = {"GenerationService": generation_pb2, "RegistryService": registry_pb2, "ResidencyService": residency_pb2}


def names_of(digest: str) -> list[str]:
    return ["team/a", "other/a"] if digest == "sha256:known" else []


def empty_request(path: str) -> Any:
    service, _, method = path.removeprefix("/hotshoe.v1.").partition("/")
    found = MODULES[service].DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return getattr(MODULES[service], found.input_type.name)()


def may(scopes: str, path: str, message: Any) -> bool:
    caller = Caller("ada", "ada", tuple(Scope.parse(text) for text in scopes.split()))
    return caller.lacks(DEMANDS[path](message, names_of)) is None


def test_every_method_times_every_set_of_scopes_is_as_the_table_says() -> None:
    cells = 0
    for service, methods in NEEDED.items():
        for needed, names in methods.items():
            for path in (f"/hotshoe.v1.{service}/{name}" for name in names.split()):
                for size in range(len(ACTIONS) + 1):
                    for scopes in itertools.combinations(ACTIONS, size):
                        cells += 1
                        expected = set(needed.split()) <= set(scopes)
                        assert may(" ".join(scopes), path, empty_request(path)) is expected, (path, scopes)
    assert cells == len(DEMANDS) * 2 ** len(ACTIONS) and cells > 1000


def _merge(name: str) -> Any:
    return registry_pb2.MergeAdaptersRequest(name=name)


def _generate(*references: str) -> Any:
    return generation_pb2.GenerateRequest(
        adapters=[generation_pb2.AdapterSelection(reference=reference) for reference in references]
    )


def _adopted(digest: object) -> Any:
    return registry_pb2.AdoptReferrerRequest(manifest=json.dumps({"subject": {"digest": digest}}).encode())


PATTERNS = [
    ("generate:team/*", "Generate", _generate(), True),
    ("generate:team/*", "Generate", _generate("team/a"), True),
    ("generate:team/*", "Generate", _generate("team/deep/a:v1", "team/b@sha256:00"), True),
    ("generate:team/*", "Generate", _generate("team/a", "other/a"), False),
    ("generate:team/*", "Generate", _generate("teams/a"), False),
    ("generate:team/* generate:other/a", "Generate", _generate("team/a", "other/a"), True),
    ("generate:base/*", "Score", _generate("team/a"), False),
    ("publish:team/*", "PublishAdapter", registry_pb2.PublishAdapterRequest(name="team/a"), True),
    ("publish:team/*", "PublishAdapter", registry_pb2.PublishAdapterRequest(name="other/a"), False),
    ("publish:team/*", "AdoptAdapter", registry_pb2.AdoptAdapterRequest(name="other/a"), False),
    ("publish:team/*", "UploadBlob", registry_pb2.UploadBlobRequest(), True),
    ("publish:team/*", "MergeAdapters", _merge("team/a"), False),
    ("read publish:team/*", "MergeAdapters", _merge("team/a"), True),
    ("read publish:team/*", "MergeAdapters", _merge("other/a"), False),
    ("publish:team/*", "AttachReferrer", registry_pb2.AttachReferrerRequest(reference="team/a:v1"), True),
    ("publish:team/*", "AttachReferrer", registry_pb2.AttachReferrerRequest(reference="other/a:v1"), False),
    ("publish:team/*", "AdoptReferrer", _adopted("sha256:known"), True),
    ("publish:third/*", "AdoptReferrer", _adopted("sha256:known"), False),
    ("publish:team/*", "AdoptReferrer", _adopted("sha256:unknown"), False),
    ("publish:team/*", "AdoptReferrer", _adopted(7), False),
    ("publish:team/*", "AdoptReferrer", registry_pb2.AdoptReferrerRequest(manifest=b"["), False),
    ("publish:team/*", "PullAdapter", registry_pb2.PullAdapterRequest(reference="team/a"), True),
    ("publish:team/*", "PullAdapter", registry_pb2.PullAdapterRequest(reference="team/a", name="other/a"), False),
    ("publish:team/*", "PullAdapter", registry_pb2.PullAdapterRequest(reference="other/a", name="team/a"), True),
    ("publish:team/*", "DiagnoseAdapter", registry_pb2.DiagnoseAdapterRequest(reference="other/a"), False),
    ("publish:team/*", "DiagnoseAdapter", registry_pb2.DiagnoseAdapterRequest(), True),
    ("publish:team/*", "LeaseAdapter", registry_pb2.LeaseAdapterRequest(reference="other/a"), False),
    ("publish:team/*", "ReleaseLease", registry_pb2.ReleaseLeaseRequest(holder="b"), False),
    ("publish", "ReleaseLease", registry_pb2.ReleaseLeaseRequest(holder="b"), True),
    ("publish:team/*", "ReleaseLease", registry_pb2.ReleaseLeaseRequest(holder="b", reference="team/a"), True),
    ("tag:team/*", "UpdateTag", registry_pb2.UpdateTagRequest(name="team/a"), True),
    ("tag:team/*", "UpdateTag", registry_pb2.UpdateTagRequest(name="other/a"), False),
    ("tag:team/*", "RollBackTag", registry_pb2.RollBackTagRequest(name="other/a"), False),
    ("publish:team/*", "DeleteTag", registry_pb2.DeleteTagRequest(name="team/a"), False),
]


@pytest.mark.parametrize(("scopes", "method", "message", "expected"), PATTERNS)
def test_a_pattern_keeps_a_scope_to_the_names_it_matches(
    scopes: str, method: str, message: Any, expected: bool
) -> None:
    [path] = [path for path in DEMANDS if path.endswith(f"/{method}")]
    assert may(scopes, path, message) is expected


@pytest.mark.parametrize(
    "text", ["", "write", "read:team/*", "admin:*", "publish:", "publish:Team", "publish:[a]", "tag:a b", "GENERATE"]
)
def test_no_other_scope_is_one(text: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        Scope.parse(text)


def test_a_scope_says_itself() -> None:
    assert [str(Scope.parse(text)) for text in ("tag", "tag:*", "tag:a/*")] == ["tag", "tag", "tag:a/*"]
    assert [str(Demand("tag", ("a/b",))), str(Demand("admin"))] == ["tag:a/b", "admin"]
