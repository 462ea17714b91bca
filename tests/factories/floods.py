"""What a hostile client sends to a server's gRPC port, and whether others are answered meanwhile and nothing is left.

    PYTHONPATH=tests/factories python tests/factories/floods.py

Resets of streams that have just begun, calls that are cancelled at once, pings that are answered or never read, and
connections that say nothing. Exits with 1, and says what was wrong.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from http2_frames import GREETING, SETTINGS, FrameSender, call, connect, frame, ping, reset
from model_directories import write_tiny_model
from server_process import ServerProcess, command, launch, limited, until
from soak import state_of, sums_that_stay_different

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc

METHOD = "/hotshoe.v1.GenerationService/StreamGenerate"
LONG = generation_pb2.StreamGenerateRequest(
    request={"text": "x", "stopping": {"max_new_tokens": 400, "ignore_eos": True}}
)
MAX_GROWTH = 100  # MiB
_PATIENCE = 120.0  # seconds
STREAMS_A_CONNECTION = 1000  # whose messages fit the window that a server grants unasked
PING = ping(7)
UNREAD_PINGS = 8_000_000  # 130 MiB of answers, were they all kept
GREETINGS = (b"", GREETING[:9], GREETING + frame(SETTINGS))  # nothing, half of one, and all, with nothing behind it


@dataclass
class Outcome:
    """What others met with while something went on, and what it left."""

    what: str
    answers: list[float] = field(default_factory=list)  # seconds, each on a connection of its own
    calls: int = 0  # that the server began, of the flood's
    seconds: float = 0.0
    grown: int = 0  # MiB
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.seconds:.1f} s, {len(self.answers)} fresh clients answered, the slowest after "
            f"{max(self.answers):.3f} s; {self.calls} calls begun, {self.grown} MiB more; {len(self.wrong)} wrong"
        )


def ask(address: str) -> None:
    """Has a client that was not there before answered. Raises grpc.RpcError."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = generation_pb2.GenerateRequest(text="fresh", stopping={"max_new_tokens": 2, "ignore_eos": True})
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=_PATIENCE)


def let_in(server: ServerProcess) -> float:
    """Seconds until a fresh client is answered, however often it must knock: places come free when others have left."""
    started = time.monotonic()
    while time.monotonic() < started + _PATIENCE:
        with contextlib.suppress(grpc.RpcError):
            ask(server.ready["grpc"])
            return time.monotonic() - started
    raise AssertionError("nobody was let in")


def under(server: ServerProcess, what: str, flood: Callable[[str], object]) -> Outcome:
    """Has fresh clients ask, one after the other, while `flood` is sent; and looks at the server when it is over."""
    outcome, before, calls = Outcome(what), state_of(server.process.pid), begun(server)
    failures: list[Exception] = []

    def run() -> None:
        try:
            flood(server.ready["grpc"])
        except Exception as error:
            failures.append(error)

    thread, started = threading.Thread(target=run), time.monotonic()
    thread.start()
    while thread.is_alive() or not outcome.answers:
        outcome.answers.append(let_in(server))
    thread.join()
    outcome.seconds = time.monotonic() - started
    outcome.wrong += [repr(error) for error in failures]
    _look(server, outcome, before)
    outcome.calls = begun(server) - calls - len(outcome.answers)
    return outcome


def begun(server: ServerProcess) -> int:
    """How many calls it has begun."""
    return int(server.metric("grpc_server_started_total"))


def _look(server: ServerProcess, outcome: Outcome, before: dict[str, int]) -> None:
    """Notes what does not come to rest: connections, calls, requests, pages, memory."""
    until(lambda: state_of(server.process.pid)["files"] <= before["files"] + 8)  # pools of threads may fill
    outcome.wrong += sums_that_stay_different(server)
    outcome.grown = state_of(server.process.pid)["rss"] - before["rss"]
    if outcome.grown > MAX_GROWTH:
        outcome.wrong.append(f"memory grew by {outcome.grown} MiB")
    if "internal_error" in server.log or "Traceback" in server.log:
        outcome.wrong.append("the log has errors")


def rapid_resets(address: str, number: int) -> None:
    """Streams that are opened, asked for 400 tokens and reset: half in one breath, half when all have been heard."""
    message = LONG.SerializeToString()
    for begun in range(0, number, STREAMS_A_CONNECTION):
        ids = range(1, 2 * min(STREAMS_A_CONNECTION, number - begun), 2)
        calls, resets = [call(METHOD, message, stream=id) for id in ids], [reset(stream=id) for id in ids]
        sender = FrameSender(address)
        half = len(calls) // 2
        sender.send(b"".join(begin + end for begin, end in zip(calls[:half], resets, strict=False)))
        sender.send(b"".join(calls[half:]))
        sender.settle()
        sender.send(b"".join(resets[half:]))
        sender.settle()
        sender.close()


def cancels(address: str, number: int, *, at_once: int = 64) -> None:
    """Calls through the ordinary client that are given up at once, or when some tokens have come."""

    async def body() -> None:
        left = iter(range(number))
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)

            async def stream() -> None:
                for turn in left:
                    calling = stub.StreamGenerate(LONG)
                    with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                        for _ in range(turn % 4):
                            await calling.read()
                    calling.cancel()

            await asyncio.gather(*(stream() for _ in range(at_once)))

    asyncio.run(body())


def pings(address: str, number: int) -> None:
    """Pings as fast as they go, whose answers are read."""
    sender = FrameSender(address)
    sender.send(PING * number)
    sender.settle()
    sender.close()


def unread_pings(address: str) -> None:
    """Pings whose answers nobody reads: more of them than the server may keep, or the buffers between us hold."""
    sender = FrameSender(address, reads=False)
    assert not sender.send(PING * UNREAD_PINGS, seconds=1.0), "it took more pings than it can have answered"
    sender.close()


def taken(address: str, number: int) -> list[socket.socket]:
    """So many connections that say one of `GREETINGS` and nothing more."""
    held = []
    for turn in range(number):
        held.append(connect(address))
        with contextlib.suppress(ConnectionError):  # one too many, which is closed at once
            held[-1].sendall(GREETINGS[turn % len(GREETINGS)])
    return held


@contextlib.contextmanager
def idle(address: str, number: int) -> Iterator[list[socket.socket]]:
    """Holds as many of `taken`."""
    held = taken(address, number)
    try:
        yield held
    finally:
        for one in held:
            one.close()


def closed(held: list[socket.socket]) -> int:
    """How many of them the server has closed."""
    return sum(map(_is_closed, held))


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while one.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def connects(address: str, number: int) -> None:
    """Connections that come and go."""
    for begun in range(0, number, 100):
        with idle(address, min(100, number - begun)):
            pass


@contextlib.contextmanager
def full_house(server: ServerProcess, number: int, *, places: int) -> Iterator[Outcome]:
    """More idle connections than the server has places: who is in is served, and it keeps the files for that.

    Looks at the server when the block is over, which may ask to come in.
    """
    outcome, inside = Outcome(f"{number} idle connections where {places} find room"), server.generation
    request = generation_pb2.GenerateRequest(text="inside", stopping={"max_new_tokens": 2, "ignore_eos": True})
    inside.Generate(request)
    before, started = state_of(server.process.pid), time.monotonic()
    with idle(server.ready["grpc"], number) as held:
        until(lambda: closed(held) >= number - places)
        for _ in range(20):
            inside.Generate(request, timeout=_PATIENCE)
        if server.get("/health")[0] != 200:
            outcome.wrong.append("not healthy")
        if state_of(server.process.pid)["files"] > before["files"] + places + 8:
            outcome.wrong.append("more files than there are places")
        yield outcome
    outcome.seconds = time.monotonic() - started
    _look(server, outcome, before)


def held_idle(server: ServerProcess, number: int) -> Outcome:
    """Fewer than it has places, held until twenty fresh clients were answered."""

    def flood(address: str) -> None:
        with idle(address, number):
            for _ in range(20):
                let_in(server)

    return under(server, f"{number} idle connections", flood)


def slow_lorises(server: ServerProcess, number: int) -> Outcome:
    """Until those who do not greet have been sent away, and a fresh client is let in."""
    with full_house(server, number, places=512) as outcome:
        outcome.answers.append(let_in(server))
    return outcome


def run(server: ServerProcess, scale: float) -> Iterator[Outcome]:
    """All floods but those that need a server with few files."""
    number = round(20_000 * scale)
    yield under(server, f"{number} rapid resets", lambda address: rapid_resets(address, number))
    yield under(server, f"{number} cancels", lambda address: cancels(address, number))
    yield under(server, f"{50 * number} pings", lambda address: pings(address, 50 * number))
    yield under(server, f"{UNREAD_PINGS} pings unread", unread_pings)
    yield under(server, f"{number // 2} connects", lambda address: connects(address, number // 2))
    yield held_idle(server, number // 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="floods-") as name:
        directory = Path(name)
        write_tiny_model(directory / "tiny")
        arguments = command(directory / "tiny", directory / "registry", "--log-json")
        for files in (0, 1024):
            server = launch(directory, limited(arguments, files=files) if files else arguments)
            try:
                outcomes = [slow_lorises(server, round(2000 * scale))] if files else run(server, scale)
                for outcome in outcomes:
                    print(outcome, *outcome.wrong[:4], sep="\n  ", flush=True)
                    wrong += len(outcome.wrong)
            finally:
                server.end()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
