"""What the server refuses or fails, in its own words; `services/status.py` holds the only table to status codes.

ServerError
├── InvalidRequest        a field of a request is wrong; names the field
│   └── PromptTooLong
├── UnsupportedModel      the base model is of no known family, or uses what its family lacks here
├── Unauthenticated       the caller shows no token, or none that counts
├── NotPermitted          the caller's token does not let it do that
├── QueueFull             admission refused; retry after a while
├── AdapterSlotsFull      every adapter slot or byte is pinned or in use
├── AdapterUnusable       the adapter could not be loaded, or gave non-finite numbers
├── OnlyMergedServed      the base holds one adapter in its weights, and the request is not for it alone
├── AdapterRefused        the doctor's grade is BAD, and this server publishes no such adapters
├── Draining              shutting down
├── EngineDead            the engine's thread ended or is stuck
├── DeadlinePassed        the caller's deadline came before the answer
└── SlowReader            the client did not read its stream, and its buffer is full
"""


class ServerError(Exception):
    """Base of everything that the server raises on purpose."""


class InvalidRequest(ServerError):
    """A request's field is wrong: `field` as in the proto ("sampling.top_p"), `problem` says what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PromptTooLong(InvalidRequest):
    """Prompt and answer do not fit the model's or the cache's length."""


class UnsupportedModel(ServerError):
    """A base model that cannot be served exactly; the message names what and lists what can."""


class Unauthenticated(ServerError):
    """The caller shows no token, or one that is not for this server, is over, or is nobody's."""


class NotPermitted(ServerError):
    """The caller's token is good, and has no scope for what it asks; the message names the scope."""


class QueueFull(ServerError):
    """The admission queue is full; `retry_after_seconds` is a fair guess."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AdapterSlotsFull(QueueFull):
    """No adapter slot, or not enough bytes, can be freed: all are pinned or in use."""


class AdapterUnusable(ServerError):
    """An adapter that cannot be served: its load failed, or it gave non-finite numbers."""


class OnlyMergedServed(ServerError):
    """The base's weights hold one adapter, and the request is for the base, another adapter, a stack or a weight."""


class AdapterRefused(ServerError):
    """An adapter that the doctor grades BAD, on a server that refuses to publish those."""


class Draining(ServerError):
    """The server is shutting down and takes no new work."""


class EngineDead(ServerError):
    """The engine's thread has ended or makes no progress."""


class DeadlinePassed(ServerError):
    """The caller's deadline passed before the answer was complete; nobody waits for the rest."""


class SlowReader(ServerError):
    """The client did not read its stream, and its buffer is full."""
