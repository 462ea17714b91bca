"""What each method demands of its caller. A method that is not in the table starts no server."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2
from hotshoe.server.services.callers import Demand

# The names that a digest is published under.
NamesOf = Callable[[str], Iterable[str]]
Demands = Callable[[Any, NamesOf], Iterable[Demand]]  # of the method's request


class _Named(Protocol):
    name: str


class _Referring(Protocol):
    reference: str


def _plain(*demands: Demand) -> Demands:
    return lambda message, names_of: demands


def _of_name(action: str) -> Demands:
    def demands(message: _Named, names_of: NamesOf) -> Iterable[Demand]:
        return (Demand(action, (message.name,)),)

    return demands


def _of_reference(action: str) -> Demands:
    def demands(message: _Referring, names_of: NamesOf) -> Iterable[Demand]:
        return (Demand(action, (_name_of(message.reference),)),)

    return demands


def _generate(
    message: generation_pb2.GenerateRequest | generation_pb2.ScoreRequest, names_of: NamesOf
) -> Iterable[Demand]:
    yield Demand("generate")  # the base alone, too
    for selection in message.adapters:
        yield Demand("generate", (_name_of(selection.reference),))


def _made_of_others(message: _Named, names_of: NamesOf) -> Iterable[Demand]:
    return Demand("read"), Demand("publish", (message.name,))


def _diagnose(message: registry_pb2.DiagnoseAdapterRequest, names_of: NamesOf) -> Iterable[Demand]:
    """The report of a published adapter is kept with it."""
    yield Demand("publish", (_name_of(message.reference),) if message.reference else ())


def _pull(message: registry_pb2.PullAdapterRequest, names_of: NamesOf) -> Iterable[Demand]:
    yield Demand("publish", (message.name or _name_of(message.reference),))


def _release(message: registry_pb2.ReleaseLeaseRequest, names_of: NamesOf) -> Iterable[Demand]:
    if message.reference:
        yield Demand("publish", (_name_of(message.reference),))
    else:
        yield Demand("publish", of_all=True)


def _adopt_referrer(message: registry_pb2.AdoptReferrerRequest, names_of: NamesOf) -> Iterable[Demand]:
    try:
        subject = json.loads(message.manifest)["subject"]["digest"]
    except (ValueError, TypeError, KeyError, RecursionError):
        subject = ""  # the service says what is wrong with it
    names = tuple(names_of(subject)) if isinstance(subject, str) and subject else ()
    yield Demand("publish", names, of_all=not names)


_READ, _PUBLISH, _ADMIN = _plain(Demand("read")), _plain(Demand("publish")), _plain(Demand("admin"))

_DEMANDS: Mapping[str, Mapping[str, Demands]] = {
    "GenerationService": {
        "Generate": _generate,
        "StreamGenerate": lambda message, names_of: _generate(message.request, names_of),
        "Score": _generate,
        "Tokenize": _plain(),
        "GetModelInfo": _plain(),
    },
    "RegistryService": {
        "CheckBlobs": _PUBLISH,
        "UploadBlob": _PUBLISH,
        "DownloadBlob": _READ,
        "PublishAdapter": _of_name("publish"),
        "AdoptAdapter": _of_name("publish"),
        "GetAdapter": _READ,
        "ListAdapters": _READ,
        "UpdateTag": _of_name("tag"),
        "DeleteTag": _of_name("tag"),
        "RollBackTag": _of_name("tag"),
        "ListTagMoves": _READ,
        "CreateView": _ADMIN,  # on the server's own disk
        "DeleteView": _ADMIN,
        "MergeAdapters": _made_of_others,
        "DiagnoseAdapter": _diagnose,
        "MitigateAdapter": _made_of_others,
        "GetLineage": _READ,
        "CompareAdapters": _READ,
        "AttachReferrer": _of_reference("publish"),
        "AdoptReferrer": _adopt_referrer,
        "PushAdapter": _ADMIN,  # with the server's own passwords
        "PullAdapter": _pull,
        "LeaseAdapter": _of_reference("publish"),
        "ReleaseLease": _release,
        "ListLeases": _READ,
        "CollectGarbage": _ADMIN,
        "CheckStore": _ADMIN,
    },
    "ResidencyService": {
        "LoadAdapter": _ADMIN,
        "UnloadAdapter": _ADMIN,
        "ListResidentAdapters": _READ,
        "WatchStatus": _READ,
    },
}


def demands_by_path() -> dict[str, Demands]:
    """The demands of every method that the wire contract has, by its path. Raises KeyError for one without any."""
    services = (
        service
        for module in (generation_pb2, registry_pb2, residency_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    )
    return {
        f"/{service.full_name}/{method.name}": _DEMANDS[service.name][method.name]
        for service in services
        for method in service.methods
    }


def _name_of(reference: str) -> str:
    return reference.partition("@")[0].partition(":")[0]
