"""What is written by hand is what the generated code writes and reads, and whatever it reads is read."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hotshoe.protos.v1 import chunks, registry_pb2
from hotshoe.protos.v1.chunks import Chunk

OFFSETS = st.one_of(st.integers(0, (1 << 63) - 1), st.integers(0, 300))


@given(st.binary(max_size=400), OFFSETS)
def test_an_uploads_chunk_is_the_message_that_it_stands_for(data: bytes, offset: int) -> None:
    encoded = chunks.upload_chunk(data, offset)
    message = registry_pb2.UploadBlobRequest.FromString(encoded)
    assert (message.WhichOneof("part"), message.data, message.offset) == ("data", data, offset)
    for form in (encoded, message.SerializeToString()):
        read = chunks.read_upload(form)
        assert isinstance(read, Chunk) and (bytes(read.data), read.offset) == (data, offset)
        assert read.WhichOneof("part") == "data"


@given(st.binary(max_size=400))
def test_a_downloads_chunk_is_the_message_that_it_stands_for(data: bytes) -> None:
    encoded = chunks.download_chunk(data)
    assert registry_pb2.DownloadBlobResponse.FromString(encoded).data == data
    for form in (encoded, registry_pb2.DownloadBlobResponse(data=data).SerializeToString()):
        assert bytes(chunks.read_download(form).data) == data


@given(st.binary(max_size=60))
def test_whatever_else_comes_is_read_or_refused_as_the_generated_code_does(message: bytes) -> None:
    for read, kind in (
        (chunks.read_upload, registry_pb2.UploadBlobRequest),
        (chunks.read_download, registry_pb2.DownloadBlobResponse),
    ):
        for mutant in (message, b"\x12" + message, b"\x0a" + message, b"\x12\x02ab\x18" + message):
            try:
                expected = kind.FromString(mutant)
            except DecodeError:
                with pytest.raises(DecodeError):
                    read(mutant)
                continue
            found = read(mutant)
            assert bytes(found.data) == expected.data
            assert getattr(found, "offset", 0) == getattr(expected, "offset", 0)


def test_a_message_that_names_a_blob_is_none_of_bytes() -> None:
    blob = registry_pb2.UploadBlobRequest(blob=registry_pb2.Blob(digest="sha256:0", size_bytes=7))
    assert chunks.read_upload(blob.SerializeToString()) == blob
    assert chunks.encode(blob) == blob.SerializeToString() and chunks.encode(b"as it is") == b"as it is"


def test_bytes_are_not_copied_out_of_their_message() -> None:
    encoded = chunks.upload_chunk(b"x" * 1000, 5)
    assert chunks.read_upload(encoded).data.obj is encoded
