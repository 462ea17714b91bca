"""Python values → the wire's messages. Shared by both clients; does no I/O."""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import grpc

from hotshoe.clients.adapter_files import AdapterFile, ProgressCounter, expect_megabytes, file_chunks
from hotshoe.clients.errors import DataLoss, Internal
from hotshoe.protos.v1 import chunks
from hotshoe.protos.v1 import generation_pb2 as generation
from hotshoe.protos.v1 import registry_pb2 as registry
from hotshoe.protos.v1 import residency_pb2 as residency

CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class AdapterSelection:
    """One adapter of a request: "name", "name:tag" or "name@sha256:<hex>", and what multiplies its own scale.

    `task` is for adapters that have tasks, and for no others.
    """

    reference: str
    weight: float = 1.0
    task: int | None = None


class ChatMessage(TypedDict):
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | Sequence[int] | Sequence[ChatMessage]
AdapterLike = str | tuple[str, float] | tuple[str, float, int | None] | AdapterSelection
Adapters = str | AdapterSelection | Sequence[AdapterLike]
TierName = Literal["host", "device"]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate and stream. What is left out takes the server's default; a zero is a zero.

    adapters: none is the base model alone; several are a stack, whose effects add, each times its weight.
    temperature: 0 is greedy.
    seed: same seed, prompt and adapters give the same tokens, whatever else is in the batch.
    stop: strings that end the answer; they are not part of it.
    time_limit: seconds, after which the answer ends as it is.
    logprobs, prompt_logprobs: alternatives to report beside each token of the answer, of the prompt.
    n: independent answers; not for stream.
    """

    adapters: Adapters
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    time_limit: float
    logprobs: int
    prompt_logprobs: int
    n: int
    request_id: str


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
)
_STOPPING = ("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "ignore_eos", "time_limit")
_REQUEST = ("logprobs", "prompt_logprobs", "n", "request_id")


def generate_request(prompt: Prompt, options: GenerateOptions) -> generation.GenerateRequest:
    """The message that asks for `prompt` to be continued. Raises TypeError or ValueError that names what is wrong."""
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(
            f"unknown option {', '.join(sorted(unknown))}; there are {', '.join(GenerateOptions.__annotations__)}"
        )
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if "time_limit" in given:
        given["time_limit"] = timedelta(seconds=given["time_limit"])
    request = generation.GenerateRequest(
        adapters=adapter_selections(given.get("adapters", ())),
        sampling=_message(generation.SamplingParams, given, _SAMPLING),
        stopping=_message(generation.StopCriteria, given, _STOPPING),
        **_prompt_field(prompt),
    )
    for name in _REQUEST:
        if name in given:
            _set(request, name, given[name])
    return request


def score_request(
    prompt: Prompt, choices: Sequence[str], *, adapters: Adapters, length_normalized: bool, request_id: str
) -> generation.ScoreRequest:
    """The message that asks how likely each of `choices` is after `prompt`."""
    if isinstance(choices, str):
        raise TypeError("choices: must be several strings, not one")
    return generation.ScoreRequest(
        adapters=adapter_selections(adapters),
        choices=choices,
        length_normalized=length_normalized,
        request_id=request_id,
        **_prompt_field(prompt),
    )


def adapter_selections(adapters: Adapters) -> list[generation.AdapterSelection]:
    """One message for each adapter named."""
    return [
        generation.AdapterSelection(reference=reference, weight=weight, task=task)
        for reference, weight, task in map(_parts, _several(adapters))
    ]


def _several(adapters: Adapters) -> Iterable[Any]:
    return (adapters,) if isinstance(adapters, str | AdapterSelection) else adapters


def _parts(adapter: Any) -> tuple[str, float | None, int | None]:
    """Reference, weight and task, as far as they were given."""
    match adapter:
        case str(reference):
            return reference, None, None
        case (str(reference), float() | int() as weight):
            return reference, weight, None
        case AdapterSelection(reference=reference, weight=weight, task=task) | (
            str(reference),
            float() | int() as weight,
            int() | None as task,
        ):
            return reference, weight, task
    raise TypeError(
        'adapters: each must be "name:tag", a (reference, weight) pair, which may have a task, or an AdapterSelection, '
        f"not {adapter!r}"
    )


def load_request(reference: str, *, tier: TierName, pin: bool, task: int | None = None) -> residency.LoadAdapterRequest:
    """The message that asks for an adapter to be loaded into `tier`."""
    tiers = {"host": residency.TIER_HOST, "device": residency.TIER_DEVICE}
    if tier not in tiers:
        raise ValueError(f"tier: must be one of {', '.join(tiers)}, not {tier!r}")
    return residency.LoadAdapterRequest(reference=reference, tier=tiers[tier], pin=pin, task=task)


def loaded_adapter(last: residency.LoadAdapterResponse | None) -> residency.ResidentAdapter:
    """The adapter of a load's last message. Raises Internal when the load ended without being ready."""
    if last is None or last.stage != residency.LoadAdapterResponse.STAGE_READY:
        raise Internal("the server ended the load before the adapter was ready")
    return last.adapter


def store_report(last: registry.CheckStoreResponse | None) -> registry.StoreReport:
    """What a check's last message says. Raises Internal when it ended before."""
    if last is None or not last.HasField("report"):
        raise Internal("the server ended the check before it was done")
    return last.report


def several(tags: Sequence[str]) -> Sequence[str]:
    """Tags, of which a lone one may be given as it is."""
    return (tags,) if isinstance(tags, str) else tags


def check_request(files: Iterable[AdapterFile]) -> registry.CheckBlobsRequest:
    """The message that asks which of `files` the registry lacks."""
    return registry.CheckBlobsRequest(blobs=[_blob(file) for file in files])


def publish_request(
    name: str,
    tags: Sequence[str],
    files: Iterable[AdapterFile],
    annotations: Mapping[str, str],
    validate_only: bool,
    *,
    approximate_rank: int = 0,
) -> registry.PublishAdapterRequest:
    """The message that makes uploaded `files` an adapter."""
    return registry.PublishAdapterRequest(
        name=name,
        tags=several(tags),
        blobs=[_blob(file) for file in files],
        annotations=annotations,
        validate_only=validate_only,
        approximate_rank=approximate_rank,
    )


def diagnose_request(
    files: Iterable[AdapterFile], *, exact: bool, approximate_rank: int = 0
) -> registry.DiagnoseAdapterRequest:
    """The message that asks for uploaded `files` to be examined."""
    return registry.DiagnoseAdapterRequest(
        blobs=[_blob(file) for file in files],
        exact=exact,
        approximate_rank=approximate_rank,
    )


def merge_request(
    sources: Adapters, name: str, *, method: str, parameters: Mapping[str, object], tags: Sequence[str]
) -> registry.MergeAdaptersRequest:
    """The message that asks for adapters to be merged into a new one."""
    return registry.MergeAdaptersRequest(
        sources=[
            registry.MergeAdaptersRequest.Source(reference=reference, weight=weight, task=task)
            for reference, weight, task in map(_parts, _several(sources))
        ],
        method=method,
        parameters={key: _parameter(value) for key, value in parameters.items()},
        name=name,
        tags=tags,
    )


def push_request(
    reference: str, remote: str, *, name: str, tags: Sequence[str], expected_digest: str | None
) -> registry.PushAdapterRequest:
    """The message that asks for an adapter to be copied to a remote."""
    return registry.PushAdapterRequest(
        reference=reference, remote=remote, name=name, tags=several(tags), expected_digest=expected_digest
    )


def pull_request(remote: str, reference: str, *, name: str, tags: Sequence[str]) -> registry.PullAdapterRequest:
    """The message that asks for an adapter to be copied from a remote."""
    return registry.PullAdapterRequest(remote=remote, reference=reference, name=name, tags=several(tags))


def mirror_request(remote: str, name: str, *, as_name: str) -> registry.PullAdapterRequest:
    """The message that asks for all that a name's tags point at to be copied from a remote."""
    return registry.PullAdapterRequest(remote=remote, reference=name, name=as_name, all_tags=True)


def _parameter(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def upload_probe(file: AdapterFile) -> Iterator[registry.UploadBlobRequest]:
    """An upload that sends nothing yet, to learn where to go on."""
    yield registry.UploadBlobRequest(blob=_blob(file))


def upload_requests(
    file: AdapterFile, offset: int, counter: ProgressCounter
) -> Iterator[registry.UploadBlobRequest | bytes]:
    """The messages that send `file` from `offset` on, counting what has been handed over; those of bytes encoded."""
    yield registry.UploadBlobRequest(blob=_blob(file))
    for position, data in file.chunks(offset):
        yield chunks.upload_chunk(data, position)
        counter.at(file.file_name, position + len(data))


class LateNames:
    """The messages of an upload that begins while its file is hashed: its size, its bytes, and its digest between them
    as soon as that is known, or after them.
    """

    def __init__(self, path: Path, counter: ProgressCounter) -> None:
        self._path = path
        self._counter = counter
        self._size_bytes = path.stat().st_size
        expect_megabytes()

    def begin(self) -> registry.UploadBlobRequest:
        """The first message."""
        return registry.UploadBlobRequest(blob=registry.Blob(file_name=self._path.name, size_bytes=self._size_bytes))

    def chunks(self) -> Iterator[bytes]:
        """The bytes, encoded."""
        for position, data in file_chunks(self._path):
            yield chunks.upload_chunk(data, position)
            self._counter.at(self._path.name, position + len(data))

    @staticmethod
    def name(file: AdapterFile) -> registry.UploadBlobRequest:
        """The digest."""
        return registry.UploadBlobRequest(blob=_blob(file))


def attach_request(
    reference: str, document: bytes, *, artifact_type: str, file_name: str, annotations: Mapping[str, str]
) -> registry.AttachReferrerRequest:
    """The message that asks for a document to be kept about an adapter."""
    return registry.AttachReferrerRequest(
        reference=reference,
        artifact_type=artifact_type,
        file_name=file_name,
        document=document,
        annotations=annotations,
    )


class SmallBlob:
    """A blob as it comes, held in memory: at most `max_bytes`, and only what has the digest."""

    def __init__(self, digest: str, max_bytes: int) -> None:
        self._digest = digest
        self._max_bytes = max_bytes
        self._data = bytearray()

    def add(self, data: bytes | memoryview) -> None:
        self._data += data
        if len(self._data) > self._max_bytes:
            raise self._wrong(f"more than {self._max_bytes} bytes came")

    def whole(self) -> bytes:
        """All of it. Raises DataLoss when it does not have the digest."""
        data = bytes(self._data)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != self._digest:
            raise self._wrong("what came has another digest")
        return data

    def _wrong(self, problem: str) -> DataLoss:
        return DataLoss(f"blob {self._digest}: {problem}", status=grpc.StatusCode.DATA_LOSS)


def corrupt_download(blob: registry.Blob) -> DataLoss:
    """What to raise when a download does not have the digest it should."""
    return DataLoss(
        f"{blob.file_name}: what came is not {blob.size_bytes} bytes with digest {blob.digest}",
        status=grpc.StatusCode.DATA_LOSS,
    )


def _blob(file: AdapterFile) -> registry.Blob:
    return registry.Blob(digest=file.digest, size_bytes=file.size_bytes, file_name=file.file_name)


def _prompt_field(prompt: Prompt) -> dict[str, Any]:
    """The member of the request's `prompt` that holds it."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: must be text, token ids or chat messages, not {type(prompt).__name__}")
    items: list[Any] = list(prompt)
    if not items:
        raise ValueError("prompt: an empty list is neither token ids nor a conversation")
    if isinstance(items[0], Mapping):
        return {"chat": generation.ChatPrompt(messages=[_chat_message(item) for item in items])}
    try:
        return {"token_ids": generation.TokenIds(ids=[operator.index(item) for item in items])}
    except (TypeError, ValueError) as error:
        raise TypeError(f"prompt: a list must hold token ids, each at least 0, or chat messages: {error}") from None


def _chat_message(item: Any) -> generation.ChatMessage:
    if not isinstance(item, Mapping) or item.keys() != {"role", "content"}:
        raise ValueError(f'prompt: a chat message has "role" and "content", unlike {item!r}')
    if item["role"] not in CHAT_ROLES:
        raise ValueError(f"prompt: role must be one of {', '.join(CHAT_ROLES)}, not {item['role']!r}")
    return generation.ChatMessage(role=item["role"], content=item["content"])


def _message(message_class: type[Any], given: Mapping[str, Any], names: Iterable[str]) -> Any:
    """A message of those of `names` that are given; None if none is, so that the field stays unset."""
    present = [name for name in names if name in given]
    if not present:
        return None
    message = message_class()
    for name in present:
        _set(message, name, given[name])
    return message


def _set(message: Any, name: str, value: Any) -> None:
    """Sets one field; an error names it."""
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {value!r} does not fit: {error}") from None
