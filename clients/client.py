"""The blocking client. `aio.py` is its asyncio twin: requests, errors and retries are shared, the I/O is not."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

from hotshoe.clients import evaluations, messages, signatures
from hotshoe.clients.adapter_files import (
    LARGE_BYTES,
    AdapterFile,
    PartialDownload,
    Progress,
    ProgressCounter,
    find_files,
    hash_counter,
    hash_file,
    ignore_progress,
    scan_directory,
)
from hotshoe.clients.channels import (
    DEFAULT_SERVER,
    GENERATE_SECONDS,
    MAX_SMALL_BLOB_BYTES,
    QUICK_SECONDS,
    TRANSFER_SECONDS,
    open_channel,
    registry_stub,
)
from hotshoe.clients.copies import Copy
from hotshoe.clients.errors import NotFound, from_rpc_error
from hotshoe.clients.retry import DEFAULT_RETRY, NO_RETRY, Attempts, RetryPolicy
from hotshoe.clients.streams import AnswerStream, ResponseStream
from hotshoe.clients.tokens import Token
from hotshoe.protos.v1 import generation_pb2 as generation
from hotshoe.protos.v1 import registry_pb2 as registry
from hotshoe.protos.v1 import residency_pb2 as residency
from hotshoe.protos.v1.generation_pb2_grpc import GenerationServiceStub
from hotshoe.protos.v1.residency_pb2_grpc import ResidencyServiceStub

if TYPE_CHECKING:
    from hotshoe.registry.signing.keys import PrivateKey
    from hotshoe.registry.signing.policy import Policy
    from hotshoe.registry.signing.verdict import Verdict


class Client:
    """A blocking client of one hotshoe server; safe to share between threads.

    Calls return the wire's messages (hotshoe.protos.v1) and raise the classes of hotshoe.clients.errors. Each has a
    `timeout` in seconds that covers all its attempts.

        with Client("127.0.0.1:50051") as client:
            client.publish_directory("pirate/", "pirate")
            with client.stream("Who are you?", adapters=["pirate"], max_new_tokens=64) as answer:
                for delta in answer:
                    print(delta.text_delta, end="")
            print(answer.final.usage)
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        token: Token | None = None,
    ) -> None:
        """Connects on the first call, in the clear unless there are `credentials` or `server` is "tls://host:port".

        `token`, or what gives one for each call, says who calls; without it the environment's HOTSHOE_TOKEN, or the
        file that HOTSHOE_TOKEN_FILE names. Raises ValueError where it would go to another machine in the clear.
        """
        self._channel = open_channel(server, credentials, token)
        self.server = server
        self._retry = retry
        self._generation: Any = GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._registry: Any = registry_stub(self._channel)
        self._residency: Any = ResidencyServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Ends what is under way and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Generation

    def generate(
        self,
        prompt: messages.Prompt,
        *,
        timeout: float | None = GENERATE_SECONDS,
        **options: Unpack[messages.GenerateOptions],
    ) -> generation.GenerateResponse:
        """Whole answers to `prompt`: text, token ids or chat messages. The options are GenerateOptions'."""
        request = messages.generate_request(prompt, options)
        response: generation.GenerateResponse = self._call(self._generation.Generate, request, timeout)
        return response

    def stream(
        self,
        prompt: messages.Prompt,
        *,
        timeout: float | None = GENERATE_SECONDS,
        **options: Unpack[messages.GenerateOptions],
    ) -> AnswerStream:
        """One answer to `prompt`, as it is decoded. The options are GenerateOptions'."""
        request = generation.StreamGenerateRequest(request=messages.generate_request(prompt, options))
        return AnswerStream(*self._opening(self._generation.StreamGenerate, request, timeout))

    def score(
        self,
        prompt: messages.Prompt,
        choices: Sequence[str],
        *,
        adapters: messages.Adapters = (),
        length_normalized: bool = False,
        request_id: str = "",
        timeout: float | None = GENERATE_SECONDS,
    ) -> generation.ScoreResponse:
        """How likely each of `choices` is as the continuation of `prompt`, in the order given."""
        request = messages.score_request(
            prompt, choices, adapters=adapters, length_normalized=length_normalized, request_id=request_id
        )
        response: generation.ScoreResponse = self._call(self._generation.Score, request, timeout)
        return response

    def tokenize(
        self, text: str, *, add_special_tokens: bool = False, timeout: float | None = QUICK_SECONDS
    ) -> generation.TokenizeResponse:
        """`text` as the base model's tokens."""
        request = generation.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        response: generation.TokenizeResponse = self._call(self._generation.Tokenize, request, timeout)
        return response

    def model_info(self, *, timeout: float | None = QUICK_SECONDS) -> generation.GetModelInfoResponse:
        """The base model's identity and limits, and the server's capacity."""
        request = generation.GetModelInfoRequest()
        response: generation.GetModelInfoResponse = self._call(self._generation.GetModelInfo, request, timeout)
        return response

    # Registry

    def publish_directory(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        tags: Sequence[str] = ("latest",),
        annotations: Mapping[str, str] | None = None,
        validate_only: bool = False,
        approximate_rank: int = 0,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.PublishAdapterResponse:
        """Publishes a PEFT directory as `name` and moves `tags` to it; sends only the files that the server lacks.

        Idempotent: equal bytes give the same digest. An upload that breaks goes on where it broke. With
        `approximate_rank` an update of full rank is served as its nearest of that rank: the answer says what is kept.
        Raises InvalidAdapterDirectory before anything is sent.
        """
        attempts = Attempts(self._retry, timeout)
        files = self._scan(directory, progress, attempts)
        request = messages.publish_request(
            name, tags, files, annotations or {}, validate_only, approximate_rank=approximate_rank
        )
        self._upload_missing(files, progress, attempts)
        try:
            return self._publish(request, attempts)
        except NotFound as error:
            if error.reason != "BLOB_NOT_FOUND":  # collected since it was checked
                raise
        self._upload_missing(files, progress, attempts)
        return self._publish(request, attempts)

    def pull(
        self,
        reference: str,
        directory: str | os.PathLike[str],
        *,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Adapter:
        """Writes an adapter's files into `directory`, each verified before it takes its place. Goes on where one broke.

        Raises DataLoss when what came does not have the digest it should.
        """
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        counter = ProgressCounter("download", sum(blob.size_bytes for blob in adapter.blobs), progress)
        for blob in adapter.blobs:
            self._download(blob, PartialDownload(root, blob), counter, attempts)
        return adapter

    def diagnose(
        self, reference: str, *, exact: bool = False, timeout: float | None = TRANSFER_SECONDS
    ) -> registry.DiagnoseAdapterResponse:
        """Examines a published adapter, and keeps the report with it. With `exact`, intruder dimensions are counted."""
        request = registry.DiagnoseAdapterRequest(reference=reference, exact=exact)
        response: registry.DiagnoseAdapterResponse = self._call(self._registry.DiagnoseAdapter, request, timeout)
        return response

    def diagnose_directory(
        self,
        directory: str | os.PathLike[str],
        *,
        exact: bool = False,
        approximate_rank: int = 0,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Diagnosis:
        """Examines a PEFT directory, which is sent but not published: its weights are held against the server's base.

        Raises InvalidAdapterDirectory before anything is sent.
        """
        files = scan_directory(directory, progress)
        attempts = Attempts(self._retry, timeout)
        self._upload_missing(files, progress, attempts)
        request = messages.diagnose_request(files, exact=exact, approximate_rank=approximate_rank)
        response = self._call(self._registry.DiagnoseAdapter, request, attempts.remaining())
        diagnosis: registry.Diagnosis = response.diagnosis
        return diagnosis

    def mitigate(
        self,
        reference: str,
        name: str,
        *,
        keep: float,
        tags: Sequence[str] = ("latest",),
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.MitigateAdapterResponse:
        """Publishes an adapter as `name` anew, its intruder dimensions shrunk to `keep` of their strength, 0 to 1."""
        request = registry.MitigateAdapterRequest(reference=reference, keep=keep, name=name, tags=tags)
        response: registry.MitigateAdapterResponse = self._call(self._registry.MitigateAdapter, request, timeout)
        return response

    def merge_adapters(
        self,
        sources: messages.Adapters,
        name: str,
        *,
        method: str = "linear",
        parameters: Mapping[str, object] | None = None,
        tags: Sequence[str] = ("latest",),
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.MergeAdaptersResponse:
        """Publishes as `name` what a method makes of published adapters, each with its weight, 1 if not given.

        The README has the methods and their parameters; the server names them where it is asked for others.
        """
        request = messages.merge_request(sources, name, method=method, parameters=parameters or {}, tags=tags)
        response: registry.MergeAdaptersResponse = self._call(self._registry.MergeAdapters, request, timeout)
        return response

    def push_to(
        self,
        remote: str,
        reference: str,
        *,
        name: str = "",
        tags: Sequence[str] = (),
        expected_digest: str | None = None,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Adapter:
        """Has the server copy an adapter to a remote, one that it was started with or below it, and move tags there.

        Args:
            remote: "oci://host/prefix", "s3://bucket/prefix" or "dir:///path".
            name: what it is called there; as here, if not given.
            tags: there; that of `reference`, if not given.
            expected_digest: where the tags must point there, "" for nowhere; Aborted is raised if they do not.
        """
        request = messages.push_request(reference, remote, name=name, tags=tags, expected_digest=expected_digest)
        copy: Copy[registry.PushAdapterResponse] = Copy(progress)
        self._follow(self._registry.PushAdapter, request, copy, timeout)
        return copy.last.adapter

    def pull_from(
        self,
        remote: str,
        reference: str,
        *,
        name: str = "",
        tags: Sequence[str] = (),
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.PullAdapterResponse:
        """Has the server copy an adapter from such a remote, as `name`, and move `tags` to it.

        They are the name and the tag of `reference`, if not given.
        """
        request = messages.pull_request(remote, reference, name=name, tags=tags)
        copy: Copy[registry.PullAdapterResponse] = Copy(progress)
        self._follow(self._registry.PullAdapter, request, copy, timeout)
        return copy.last

    def mirror_from(
        self,
        remote: str,
        name: str,
        *,
        as_name: str = "",
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> Sequence[registry.PullAdapterResponse]:
        """Has the server copy all that a name's tags point at on such a remote, with the tags; others stay."""
        copy: Copy[registry.PullAdapterResponse] = Copy(progress)
        request = messages.mirror_request(remote, name, as_name=as_name)
        self._follow(self._registry.PullAdapter, request, copy, timeout)
        return copy.done

    def get_adapter(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> registry.Adapter:
        """The adapter that `reference` resolves to now: "name", "name:tag" or "name@sha256:<hex>"."""
        request = registry.GetAdapterRequest(reference=reference)
        response: registry.GetAdapterResponse = self._call(self._registry.GetAdapter, request, timeout)
        return response.adapter

    def lineage(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> registry.GetLineageResponse:
        """What an adapter was made from, back to the trained ones, and what was made from it."""
        request = registry.GetLineageRequest(reference=reference)
        response: registry.GetLineageResponse = self._call(self._registry.GetLineage, request, timeout)
        return response

    def compare_adapters(
        self, first: str, second: str, *, timeout: float | None = TRANSFER_SECONDS
    ) -> registry.CompareAdaptersResponse:
        """How two adapters differ, in their configs and in what they do to each of the base's weights."""
        request = registry.CompareAdaptersRequest(first=first, second=second)
        response: registry.CompareAdaptersResponse = self._call(self._registry.CompareAdapters, request, timeout)
        return response

    def attach(
        self,
        reference: str,
        document: bytes,
        *,
        artifact_type: str,
        file_name: str,
        annotations: Mapping[str, str] | None = None,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.AttachReferrerResponse:
        """Keeps a document of at most 1 MiB about an adapter, as its latest of that media type. Idempotent."""
        request = messages.attach_request(
            reference, document, artifact_type=artifact_type, file_name=file_name, annotations=annotations or {}
        )
        response: registry.AttachReferrerResponse = self._call(self._registry.AttachReferrer, request, timeout)
        return response

    def report(
        self,
        reference: str,
        report: Mapping[str, Any] | bytes,
        *,
        file_name: str = evaluations.EVALUATION_FILE,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.AttachReferrerResponse:
        """Keeps an evaluation's report about an adapter: a JSON object, or its bytes. The latest of a name is shown.

        Of what it has under "results" (as lm-evaluation-harness writes), "metrics" or at its top, the first figures
        are its summary. Raises ValueError where it is no JSON object.
        """
        request = evaluations.report_request(reference, report, file_name=file_name)
        response: registry.AttachReferrerResponse = self._call(self._registry.AttachReferrer, request, timeout)
        return response

    def adopt(
        self,
        manifest: bytes,
        files: Sequence[AdapterFile],
        name: str,
        *,
        tags: Sequence[str] = ("latest",),
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.AdoptAdapterResponse:
        """Publishes an adapter of elsewhere as it stands: `manifest` byte for byte, and all that it names as `files`.

        It keeps its digest, parents and all. Raises InvalidArgument where hotshoe would not have written it, and
        FailedPrecondition where it is for another base model.
        """
        attempts = Attempts(self._retry, timeout)
        request = registry.AdoptAdapterRequest(name=name, tags=messages.several(tags), manifest=manifest)
        self._upload_missing(files, progress, attempts)
        response: registry.AdoptAdapterResponse = self._call(self._registry.AdoptAdapter, request, attempts.remaining())
        return response

    def adopt_referrer(
        self, manifest: bytes, document: bytes, *, timeout: float | None = QUICK_SECONDS
    ) -> registry.AdoptReferrerResponse:
        """Keeps a document about an adapter that is here as it was attached elsewhere: its manifest byte for byte."""
        request = registry.AdoptReferrerRequest(manifest=manifest, document=document)
        response: registry.AdoptReferrerResponse = self._call(self._registry.AdoptReferrer, request, timeout)
        return response

    def read_blob(
        self, digest: str, *, max_bytes: int = MAX_SMALL_BLOB_BYTES, timeout: float | None = QUICK_SECONDS
    ) -> bytes:
        """A manifest, or a document about an adapter. Raises DataLoss if it has another digest, or more bytes."""
        request = registry.DownloadBlobRequest(digest=digest)
        blob = messages.SmallBlob(digest, max_bytes)
        message: registry.DownloadBlobResponse
        stream: ResponseStream[registry.DownloadBlobResponse]
        with ResponseStream(*self._opening(self._registry.DownloadBlob, request, timeout)) as stream:
            for message in stream:
                blob.add(message.data)
        return blob.whole()

    def sign(
        self, reference: str, key: "PrivateKey", *, timeout: float | None = QUICK_SECONDS
    ) -> registry.AttachReferrerResponse:
        """Signs the digest that `reference` resolves to, here, and attaches the signature. The key stays here."""
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        request = signatures.sign_request(adapter, key)
        response: registry.AttachReferrerResponse = self._call(
            self._registry.AttachReferrer, request, attempts.remaining()
        )
        return response

    def verify(self, reference: str, policy: "Policy", *, timeout: float | None = QUICK_SECONDS) -> "Verdict":
        """Whose signatures a policy counts for an adapter, checked here: the server is not taken at its word.

        Raises DataLoss when what the server says of the adapter is not what its manifest says.
        """
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        manifest = self.read_blob(adapter.digest, timeout=attempts.remaining())
        signatures.check_manifest(adapter, manifest)
        bundles = [
            self.read_blob(digest, max_bytes=signatures.MAX_BUNDLE_BYTES, timeout=attempts.remaining())
            for digest in signatures.bundle_digests(adapter)
        ]
        return signatures.judge(adapter, policy, bundles)

    def list_adapters(
        self,
        *,
        name_contains: str = "",
        kind: str = "",
        page_size: int = 0,
        timeout: float | None = QUICK_SECONDS,
    ) -> Iterator[registry.Adapter]:
        """All adapters, newest first; pages are fetched as the iterator needs them, `timeout` is for each page."""
        request = registry.ListAdaptersRequest(name_contains=name_contains, kind=kind, page_size=page_size)
        while True:
            page: registry.ListAdaptersResponse = self._call(self._registry.ListAdapters, request, timeout)
            yield from page.adapters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def update_tag(
        self, name: str, tag: str, digest: str, *, expected_digest: str, timeout: float | None = QUICK_SECONDS
    ) -> registry.Adapter:
        """Moves a tag to `digest` if it points at `expected_digest` now; "" means that it must not exist.

        Raises Aborted when it points elsewhere. Not tried again when the answer was lost: read the tag then.
        """
        request = registry.UpdateTagRequest(name=name, tag=tag, digest=digest, expected_digest=expected_digest)
        response: registry.UpdateTagResponse = self._call(self._registry.UpdateTag, request, timeout, idempotent=False)
        return response.adapter

    def delete_tag(self, name: str, tag: str, *, timeout: float | None = QUICK_SECONDS) -> None:
        """Removes a tag; the content stays until it is collected. Not tried again when the answer was lost."""
        request = registry.DeleteTagRequest(name=name, tag=tag)
        self._call(self._registry.DeleteTag, request, timeout, idempotent=False)

    def roll_back_tag(
        self, name: str, tag: str, *, timeout: float | None = QUICK_SECONDS
    ) -> registry.RollBackTagResponse:
        """Moves a tag back to where it pointed before its latest move, or its removal; again undoes that.

        Not tried again when the answer was lost: read the tag then.
        """
        request = registry.RollBackTagRequest(name=name, tag=tag)
        response: registry.RollBackTagResponse = self._call(
            self._registry.RollBackTag, request, timeout, idempotent=False
        )
        return response

    def list_tag_moves(
        self, name: str, tag: str = "", *, limit: int = 0, timeout: float | None = QUICK_SECONDS
    ) -> Sequence[registry.TagMove]:
        """What became of a name's tags, or of one, the latest first; at most `limit`, or 100."""
        request = registry.ListTagMovesRequest(name=name, tag=tag, limit=limit)
        response: registry.ListTagMovesResponse = self._call(self._registry.ListTagMoves, request, timeout)
        return response.moves

    def view(self, reference: str, *, timeout: float | None = TRANSFER_SECONDS) -> registry.CreateViewResponse:
        """Makes a directory of an adapter's files on the server's machine, as PEFT and vLLM read it.

        It is there, and the adapter is not collected, until `unview`.
        """
        request = registry.CreateViewRequest(reference=reference)
        response: registry.CreateViewResponse = self._call(self._registry.CreateView, request, timeout)
        return response

    def unview(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> bool:
        """Removes an adapter's view; whether there was one."""
        request = registry.DeleteViewRequest(reference=reference)
        response: registry.DeleteViewResponse = self._call(self._registry.DeleteView, request, timeout)
        return response.deleted

    def lease(
        self,
        reference: str,
        holder: str,
        *,
        ttl_seconds: float | None = None,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.Lease:
        """Keeps what a reference resolves to now from being collected for a time, a day if it is not given.

        Leasing it again is for so long from then on. It outlives restarts of client and server.
        """
        request = registry.LeaseAdapterRequest(reference=reference, holder=holder, ttl_seconds=ttl_seconds)
        response: registry.LeaseAdapterResponse = self._call(self._registry.LeaseAdapter, request, timeout)
        return response.lease

    def release_lease(self, holder: str, reference: str = "", *, timeout: float | None = QUICK_SECONDS) -> int:
        """Ends a holder's lease of an adapter, or all that it has; returns how many there were."""
        request = registry.ReleaseLeaseRequest(holder=holder, reference=reference)
        response: registry.ReleaseLeaseResponse = self._call(self._registry.ReleaseLease, request, timeout)
        return response.released

    def leases(self, holder: str = "", *, timeout: float | None = QUICK_SECONDS) -> Sequence[registry.Lease]:
        """The leases that hold now, of a holder or of all, the first to expire first; those of servers, too."""
        request = registry.ListLeasesRequest(holder=holder)
        response: registry.ListLeasesResponse = self._call(self._registry.ListLeases, request, timeout)
        return response.leases

    def collect_garbage(
        self,
        *,
        dry_run: bool = False,
        grace_seconds: float | None = None,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.CollectGarbageResponse:
        """Removes what no tag, lease or view reaches and nobody touched within the grace, a day if it is not given."""
        request = registry.CollectGarbageRequest(dry_run=dry_run, grace_seconds=grace_seconds)
        response: registry.CollectGarbageResponse = self._call(self._registry.CollectGarbage, request, timeout)
        return response

    def check_store(
        self,
        *,
        heal: bool = False,
        progress: Callable[[registry.CheckStoreResponse], None] | None = None,
        timeout: float | None = None,
    ) -> registry.StoreReport:
        """Has the server read and hash every blob. With `heal`, what is damaged or lost is fetched from its remotes."""
        request = registry.CheckStoreRequest(heal=heal)
        stream: ResponseStream[registry.CheckStoreResponse]
        last: registry.CheckStoreResponse | None = None
        with ResponseStream(*self._opening(self._registry.CheckStore, request, timeout)) as stream:
            for last in stream:
                if progress is not None and not last.HasField("report"):
                    progress(last)
        return messages.store_report(last)

    # Residency

    def load(
        self,
        reference: str,
        *,
        tier: messages.TierName = "device",
        pin: bool = False,
        task: int | None = None,
        progress: Callable[[residency.LoadAdapterResponse], None] | None = None,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> residency.ResidentAdapter:
        """Loads an adapter, or a task of one that has tasks, ahead of its first request; waits until it is ready."""
        request = messages.load_request(reference, tier=tier, pin=pin, task=task)
        stream: ResponseStream[residency.LoadAdapterResponse]
        last: residency.LoadAdapterResponse | None = None
        with ResponseStream(*self._opening(self._residency.LoadAdapter, request, timeout)) as stream:
            for last in stream:
                if progress is not None:
                    progress(last)
        return messages.loaded_adapter(last)

    def unload(self, reference: str, *, task: int | None = None, timeout: float | None = QUICK_SECONDS) -> None:
        """Unpins an adapter and drops it once no request uses it: one of its tasks, or all that there is of it."""
        request = residency.UnloadAdapterRequest(reference=reference, task=task)
        self._call(self._residency.UnloadAdapter, request, timeout)

    def list_resident(self, *, timeout: float | None = QUICK_SECONDS) -> Sequence[residency.ResidentAdapter]:
        """The adapters that the server holds in memory."""
        request = residency.ListResidentAdaptersRequest()
        response: residency.ListResidentAdaptersResponse = self._call(
            self._residency.ListResidentAdapters, request, timeout
        )
        return response.adapters

    def watch_status(
        self, *, interval_seconds: float = 1.0, timeout: float | None = None
    ) -> ResponseStream[residency.WatchStatusResponse]:
        """The server's state once per interval, until the stream is left."""
        request = residency.WatchStatusRequest(interval_ms=round(interval_seconds * 1000))
        return ResponseStream(*self._opening(self._residency.WatchStatus, request, timeout))

    def health(self, service: str = "", *, timeout: float | None = QUICK_SECONDS) -> str:
        """What grpc.health.v1 says: "SERVING", "NOT_SERVING" or "UNKNOWN". Raises NotFound for an unknown service."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # only those who ask pay for it

        stub = health_pb2_grpc.HealthStub(self._channel)
        response = self._call(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    # The I/O

    def _call(self, method: Any, request: Any, timeout: float | None, *, idempotent: bool = True) -> Any:
        attempts = Attempts(self._retry, timeout, idempotent=idempotent)
        while True:
            try:
                return method(request, timeout=attempts.remaining())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.wait_after(failure))

    def _opening(
        self, method: Any, request: Any, timeout: float | None
    ) -> tuple[Callable[[float | None], Any], Attempts]:
        return lambda remaining: method(request, timeout=remaining), Attempts(self._retry, timeout)

    def _follow(self, method: Any, request: Any, copy: Copy[Any], timeout: float | None) -> None:
        # The server has tried a remote again that failed; to do so once more only takes longer.
        stream: ResponseStream[Any]
        message: Any
        with ResponseStream(lambda left: method(request, timeout=left), Attempts(NO_RETRY, timeout)) as stream:
            for message in stream:
                copy.take(message)

    def _scan(self, directory: str | os.PathLike[str], progress: Progress, attempts: Attempts) -> list[AdapterFile]:
        """Hashes a directory's files; large weights are sent meanwhile."""
        weights, *others = paths = find_files(directory)
        counter = hash_counter(paths, progress)
        if weights.stat().st_size < LARGE_BYTES:
            return [hash_file(path, counter) for path in paths]
        with ThreadPoolExecutor(1, thread_name_prefix="hashing") as thread:
            hashing = thread.submit(hash_file, weights, counter)
            names = messages.LateNames(weights, ProgressCounter("upload", weights.stat().st_size, progress))
            # If it breaks, what follows sends the rest, or says why not.
            with contextlib.suppress(grpc.RpcError):
                self._registry.UploadBlob(_late_requests(names, hashing), timeout=attempts.remaining())
            return [hashing.result(), *[hash_file(path, counter) for path in others]]

    def _upload_missing(self, files: Sequence[AdapterFile], progress: Progress, attempts: Attempts) -> None:
        response = self._call(self._registry.CheckBlobs, messages.check_request(files), attempts.remaining())
        missing = [file for file in files if file.digest in response.missing_digests]
        counter = ProgressCounter("upload", sum(file.size_bytes for file in missing), progress)
        for file in missing:
            self._upload(file, counter, attempts)

    def _publish(self, request: registry.PublishAdapterRequest, attempts: Attempts) -> registry.PublishAdapterResponse:
        response: registry.PublishAdapterResponse = self._call(
            self._registry.PublishAdapter, request, attempts.remaining()
        )
        return response

    def _upload(self, file: AdapterFile, counter: ProgressCounter, attempts: Attempts) -> None:
        """Sends one file, and again from where the server has it whenever the stream breaks."""
        furthest = 0
        while True:
            try:
                probe = self._registry.UploadBlob(messages.upload_probe(file), timeout=attempts.remaining())
                if probe.committed_bytes > furthest:
                    furthest = probe.committed_bytes
                    attempts.progressed()
                if probe.committed_bytes < file.size_bytes:
                    requests = messages.upload_requests(file, probe.committed_bytes, counter)
                    self._registry.UploadBlob(requests, timeout=attempts.remaining())
                return counter.finish(file.file_name, file.size_bytes)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.wait_after(failure))

    def _download(
        self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter, attempts: Attempts
    ) -> None:
        """Fetches one file, and on from what has come whenever the stream breaks; twice if its bytes were wrong."""
        if target.already_here():
            return counter.finish(blob.file_name, blob.size_bytes)
        with target:
            # What an earlier pull left may have been wrong: then once more, from the start.
            for _ in range(2 if target.offset else 1):
                self._receive(blob, target, counter, attempts)
                if target.commit():
                    break
            else:
                raise messages.corrupt_download(blob)
        counter.finish(blob.file_name, blob.size_bytes)

    def _receive(
        self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter, attempts: Attempts
    ) -> None:
        while target.offset < blob.size_bytes:
            request = registry.DownloadBlobRequest(digest=blob.digest, offset=target.offset)
            call = self._registry.DownloadBlob(request, timeout=attempts.remaining())
            try:
                for message in call:
                    target.write(message.data)
                    attempts.progressed()
                    counter.at(blob.file_name, target.offset)
                    if target.offset > blob.size_bytes:
                        break
                return
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            finally:
                call.cancel()
            time.sleep(attempts.wait_after(failure))


def _late_requests(
    names: messages.LateNames, hashing: "Future[AdapterFile]"
) -> Iterator[registry.UploadBlobRequest | bytes]:
    yield names.begin()
    named = False
    for chunk in names.chunks():
        if hashing.done() and not named:
            named = True
            yield names.name(hashing.result())
        yield chunk
    if not named:
        yield names.name(hashing.result())
