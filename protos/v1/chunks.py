"""The messages that carry blobs' bytes, written and read by hand: gRPC copies them often enough.

They are on the wire what registry.proto says, UploadBlobRequest with `data` and `offset`, DownloadBlobResponse with
`data`; whoever uses the generated code understands them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hotshoe.protos.v1 import registry_pb2

UPLOAD = "/hotshoe.v1.RegistryService/UploadBlob"
DOWNLOAD = "/hotshoe.v1.RegistryService/DownloadBlob"

# Of what either end sends at a time. Smaller ones cost more steps than they save memory; a server takes up to twice it.
CHUNK_BYTES = 512 << 10

# What comes before anybody has read it waits in the receiver's memory. Left to itself, gRPC finds that a fast network
# could hold more and more, and lets tens of megabytes wait there.
WINDOW_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", CHUNK_BYTES),
)

# Field number and wire type, as each field begins.
_UPLOAD_DATA = b"\x12"
_UPLOAD_OFFSET = b"\x18"
_DOWNLOAD_DATA = b"\x0a"
_MAX_OFFSET = (1 << 63) - 1


class Chunk(NamedTuple):
    """A piece of a blob, in the memory of the message that it came in."""

    data: memoryview
    offset: int

    def WhichOneof(self, _: str) -> str:
        """As an UploadBlobRequest with `data`."""
        return "data"


def upload_chunk(data: bytes, offset: int) -> bytes:
    """An UploadBlobRequest with a piece of a blob, encoded."""
    return b"".join((_UPLOAD_DATA, _varint(len(data)), data, _UPLOAD_OFFSET, _varint(offset)))


def download_chunk(data: bytes) -> bytes:
    """A DownloadBlobResponse, encoded."""
    return b"".join((_DOWNLOAD_DATA, _varint(len(data)), data))


def encode(message: Any) -> bytes:
    """What was encoded here as it is; other messages by the generated code."""
    encoded: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return encoded


def read_upload(message: bytes) -> "registry_pb2.UploadBlobRequest | Chunk":
    """Decodes an UploadBlobRequest. Raises DecodeError: it is none."""
    return _read(message, _UPLOAD_DATA) or registry_pb2.UploadBlobRequest.FromString(message)


def read_download(message: bytes) -> "registry_pb2.DownloadBlobResponse | Chunk":
    """Decodes a DownloadBlobResponse. Raises DecodeError: it is none."""
    return _read(message, _DOWNLOAD_DATA) or registry_pb2.DownloadBlobResponse.FromString(message)


def _read(message: bytes, key: bytes) -> Chunk | None:
    """The chunk of a message that is written as here; others may be just as right."""
    if message[:1] != key:
        return None
    length, start = _read_varint(message, 1)
    end = start + length
    offset, after = 0, end
    if message[end : end + 1] == _UPLOAD_OFFSET and key == _UPLOAD_DATA:
        offset, after = _read_varint(message, end + 1)
    if start == 0 or after != len(message) or not 0 <= offset <= _MAX_OFFSET:
        return None
    return Chunk(memoryview(message)[start:end], offset)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that begins there, and where it ends; (-1, 0) if there is none."""
    value = 0
    for index, byte in enumerate(message[start : start + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, start + index + 1
    return -1, 0
