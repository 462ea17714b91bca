"""What a channel lets wait in its memory, and which server it takes where there are several."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from scripted_server import ScriptedServer

from hotshoe.clients import Client
from hotshoe.clients.channels import open_channel
from hotshoe.protos.v1.chunks import CHUNK_BYTES, UPLOAD, WINDOW_OPTIONS
from hotshoe.protos.v1.generation_pb2 import GetModelInfoResponse

MESSAGES = 200
AHEAD = 8  # the window, what is read ahead of whoever asks, what is being sent, and what the socket holds
METHOD = UPLOAD.rpartition("/")[2]


class Ahead:
    """Counts how many messages were handed to gRPC at one end that the other end did not have yet, at the most."""

    def __init__(self) -> None:
        self.given = self.taken = self.most = 0

    def messages(self) -> Iterator[bytes]:
        for _ in range(MESSAGES):
            self.given += 1
            self.most = max(self.most, self.given - self.taken)
            yield bytes(CHUNK_BYTES)

    def take(self, messages: Iterator[bytes]) -> None:
        for message in messages:
            self.taken += 1
            for _ in range(4):  # so that the reader is the slower of both, on any machine
                hashlib.sha256(message)


def exchange(handler: Any, ask: Callable[[Any], object]) -> None:
    server = grpc.server(ThreadPoolExecutor(2), options=WINDOW_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with open_channel(f"127.0.0.1:{port}") as channel:
            ask(channel)
    finally:
        server.stop(None).wait()


def upload(ahead: Ahead) -> None:
    def read(requests: Iterator[bytes], _: object) -> bytes:
        ahead.take(requests)
        return b""

    handler = grpc.stream_unary_rpc_method_handler(read)
    exchange(handler, lambda channel: channel.stream_unary(f"/t.T/{METHOD}")(ahead.messages()))


def download(ahead: Ahead) -> None:
    handler = grpc.unary_stream_rpc_method_handler(lambda request, _: ahead.messages())
    exchange(handler, lambda channel: ahead.take(channel.unary_stream(f"/t.T/{METHOD}")(b"")))


@pytest.mark.parametrize("transfer", [upload, download])
def test_a_slow_reader_lets_little_wait_in_memory(transfer: Callable[[Ahead], None]) -> None:
    ahead = Ahead()
    transfer(ahead)
    assert ahead.taken == MESSAGES
    assert ahead.most <= AHEAD


def test_calls_go_round_the_servers_that_an_address_names() -> None:
    info = "GenerationService/GetModelInfo"
    with ScriptedServer() as one, ScriptedServer() as other:
        for server in (one, other):
            server.answer(info, GetModelInfoResponse(base_model=server.address))
        with Client(f"ipv4:{one.address},{other.address}") as client:
            told = set()
            while told != {one.address, other.address}:  # once both are connected
                told.add(client.model_info().base_model)
            next_ones = [client.model_info().base_model for _ in range(4)]
        assert next_ones[0] != next_ones[1] and next_ones[:2] == next_ones[2:]
