"""How an RPC ended whose caller is gone: decided once, so that its log line and the metrics say the same."""

from contextvars import ContextVar

import grpc

from hotshoe.server.services.rpc import Context


class Ending:
    """Of one RPC."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cancelled: grpc.StatusCode | None = None

    def cancelled(self) -> grpc.StatusCode:
        """The code of its cancellation: whether the deadline had passed when it was first asked for."""
        if self._cancelled is None:
            remaining = self._context.time_remaining()
            passed = remaining is not None and remaining <= 0
            self._cancelled = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
        return self._cancelled


current_ending: ContextVar[Ending] = ContextVar("current_ending")
