"""HTTP/2 by hand, for what no client library would send: resets at once, floods of pings, half a greeting."""

import contextlib
import select
import socket
import struct

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_ACK, _END_STREAM, _END_HEADERS = 0x1, 0x1, 0x4
_CANCEL = 0x8
_PATIENCE_SECONDS = 120.0


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def call(method: str, message: bytes, *, stream: int) -> bytes:
    """One RPC, whole. Its headers are literals: nothing is remembered, so that calls can be sent in any number."""
    head = b"\x83\x86" + _text(0x04, method.encode()) + _text(0x01, b"127.0.0.1")  # POST, http, :path, :authority
    head += _field(b"content-type", b"application/grpc") + _field(b"te", b"trailers")
    body = struct.pack(">BI", 0, len(message)) + message
    opened = frame(HEADERS, head, flags=_END_HEADERS, stream=stream)
    return opened + frame(DATA, body, flags=_END_STREAM, stream=stream)


def reset(*, stream: int) -> bytes:
    return frame(RST_STREAM, struct.pack(">I", _CANCEL), stream=stream)


def ping(number: int) -> bytes:
    return frame(PING, struct.pack(">Q", number))


def _field(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _text(prefix: int, value: bytes) -> bytes:
    return bytes([prefix, len(value)]) + value


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class FrameSender:
    """A connection that has greeted. What the server says is thrown away while something is sent, or never read."""

    def __init__(self, address: str, *, reads: bool = True) -> None:
        self._socket = connect(address)
        self._socket.sendall(GREETING + frame(SETTINGS) + frame(SETTINGS, flags=_ACK))
        self._reads = reads
        self._last = b""
        self._settled = 0
        self.closed = False  # by the server

    def send(self, data: bytes, *, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Whether all was sent, and not cut short because the server closed or took nothing for so long."""
        left = memoryview(data)
        self._socket.setblocking(False)
        while left and not self.closed:
            readable, writable, _ = select.select([self._socket] if self._reads else [], [self._socket], [], seconds)
            if not readable and not writable:
                return False
            with contextlib.suppress(BlockingIOError):
                self._take(readable)
                left = left[self._socket.send(left) :] if writable else left
        return not self.closed

    def settle(self) -> bool:
        """Whether the server has read all that was sent: it answers one more ping. Else it has closed."""
        self._settled += 1
        marker = b"seen" + struct.pack(">I", self._settled)
        heard = self.send(frame(PING, marker))
        while heard and marker not in self._last:
            readable, _, _ = select.select([self._socket], [], [], _PATIENCE_SECONDS)
            assert readable, "no answer to a ping"
            self._take(readable)
            heard = not self.closed
        return heard

    def _take(self, readable: list[socket.socket]) -> None:
        try:
            if readable and not (data := self._socket.recv(1 << 16)):
                self.closed = True
            elif readable:
                self._last = self._last[-64:] + data
        except ConnectionError:
            self.closed = True

    def close(self) -> None:
        self._socket.close()
