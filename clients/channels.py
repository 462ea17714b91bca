"""How the clients' channels are set up, and the timeouts of their calls."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from hotshoe.clients.tokens import Token, refuse_clear_text, token_source
from hotshoe.protos.v1 import chunks, registry_pb2
from hotshoe.protos.v1.registry_pb2_grpc import RegistryServiceStub

DEFAULT_SERVER = "127.0.0.1:50051"
TLS_SCHEME = "tls://"
_TARGET = re.compile(r"[^/]+:(?P<port>\d{1,5})|(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):.+")  # gRPC's own
_MAX_PORT = 65535

QUICK_SECONDS = 30.0  # look-ups
GENERATE_SECONDS = 600.0  # an answer, with its queue and its adapters' load
TRANSFER_SECONDS = 3600.0  # an adapter's files, or its load

MAX_SMALL_BLOB_BYTES = 4 << 20  # a manifest, or a document about an adapter

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", 64 << 20),  # long answers with log-probabilities
    ("grpc.keepalive_time_ms", 30_000),  # finds a dead server under a silent stream
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),  # else a retry within the first second never reaches the network
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),  # a proxy set for the web is not the way to a model server
    ("grpc.enable_retries", 0),  # retry.py decides; two layers would multiply
    *chunks.WINDOW_OPTIONS,
)


def open_channel(
    server: str, credentials: grpc.ChannelCredentials | None = None, token: Token | None = None
) -> grpc.Channel:
    """A channel to "host:port" in the clear, or to "tls://host:port"; it connects on the first call.

    Calls carry `token`, or that of the environment. Raises ValueError: not an address, or a token would be readable.
    """
    target, credentials = _target_and_credentials(server, credentials)
    if credentials is None:
        channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
    opened: grpc.Channel = _authorized(channel, token, target, is_clear=credentials is None)
    return opened


def open_aio_channel(
    server: str, credentials: grpc.ChannelCredentials | None = None, token: Token | None = None
) -> grpc.aio.Channel:
    """The same for the running event loop."""
    target, credentials = _target_and_credentials(server, credentials)
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
    opened: grpc.aio.Channel = _authorized(channel, token, target, is_clear=credentials is None)
    return opened


class _AuthorizedChannel:
    """A channel, blocking or of asyncio, whose calls carry a token. gRPC's own way of doing so needs TLS."""

    def __init__(self, channel: Any, token: Callable[[], str]) -> None:
        self._channel = channel
        self._token = token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._carrying(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._carrying(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._carrying(self._channel.stream_unary(*arguments, **options))

    def _carrying(self, method: Any) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> Any:
            return method(request, metadata=(("authorization", f"Bearer {self._token()}"),), **options)

        return call


def _authorized(channel: Any, token: Token | None, target: str, *, is_clear: bool) -> Any:
    source = token_source(token)
    if source is None:
        return channel
    if is_clear:
        refuse_clear_text(target)
    return _AuthorizedChannel(channel, source)


def _target_and_credentials(
    server: str, credentials: grpc.ChannelCredentials | None
) -> tuple[str, grpc.ChannelCredentials | None]:
    """Without credentials, "tls://…" trusts the machine's certificate authorities.

    gRPC takes others from the file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names. Raises ValueError for another scheme,
    or no port: gRPC would take 443, and of one that is too large its last 16 bits.
    """
    target = server.removeprefix(TLS_SCHEME)
    match = _TARGET.fullmatch(target)
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ValueError(f"server: expected HOST:PORT or tls://HOST:PORT, not {server!r}")
    if target != server and credentials is None:
        credentials = grpc.ssl_channel_credentials()
    return target, credentials


def registry_stub(channel: Any) -> Any:
    """The registry's methods, of which those that carry blobs' bytes copy them less."""
    stub: Any = RegistryServiceStub(channel)
    stub.UploadBlob = channel.stream_unary(
        chunks.UPLOAD,
        request_serializer=chunks.encode,
        response_deserializer=registry_pb2.UploadBlobResponse.FromString,
    )
    stub.DownloadBlob = channel.unary_stream(
        chunks.DOWNLOAD,
        request_serializer=registry_pb2.DownloadBlobRequest.SerializeToString,
        response_deserializer=chunks.read_download,
    )
    return stub
