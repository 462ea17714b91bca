"""What a failed verb prints, one line on standard error, and the exit code it ends with."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import typer

# The exit codes are told in the help of `hotshoe`, from this table.
EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "the call failed",
    2: "wrong usage",
    3: "the server cannot be reached, or takes no work",
    4: "no such adapter or tag",
    5: "refused: a field or an adapter is wrong, does not fit the base model, or is not signed; or you may not",
    6: "somebody else moved the tag",
    7: "the server is full",
    8: "timed out",
    130: "interrupted",
}
FAILED, USAGE, UNREACHABLE, NOT_FOUND, REFUSED, CONFLICT, FULL, TIMED_OUT = range(1, 9)
INTERRUPTED = 130
# What gRPC says of a connection, and what that mostly means.
_HINTS: Mapping[str, str] = {
    "refused": "hotshoe serve starts one, --server names another",
    "parsing HTTP/2": "what answers there speaks no gRPC: --server wants what hotshoe serve has as --listen",
    "WRONG_VERSION_NUMBER": "what answers there speaks no TLS: leave out tls://",
}


@contextmanager
def told_clearly() -> Iterator[None]:
    """Turns what the clients raise on purpose into a line and an exit code; anything else is a bug, and shows it."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output went away. What is still buffered would fail again when Python ends.
        sys.stdout = None
        raise typer.Exit(0) from None
    except ValueError as error:
        fail(str(error), USAGE)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), FAILED)
    except Exception as error:
        # Where nobody has imported the clients' errors it is none: how --help ends, which needs no gRPC.
        errors = sys.modules.get("hotshoe.clients.errors")
        if errors is None or not isinstance(error, errors.HotshoeError):
            raise
        fail(describe(error), exit_code(error))


def fail(message: str, code: int) -> NoReturn:
    """Prints one line and ends the verb."""
    print(f"hotshoe: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


def describe(error: Exception) -> str:
    """The error in one line, with what the caller needs in order to act."""
    from hotshoe.clients import errors

    text = str(error)
    if not isinstance(error, errors.CallError):
        return text
    if isinstance(error, errors.Unavailable) and not error.reason:
        hint = next((f" ({hint})" for sign, hint in _HINTS.items() if sign in text), "")
        return f"the server cannot be reached{hint}: {text}"
    if isinstance(error, errors.DeadlineExceeded) and not error.reason and "Deadline Exceeded" in text:
        return "no answer came within the time that the call was given"  # gRPC says it in several ways
    if isinstance(error, errors.PermissionDenied) and error.reason == "UNAUTHENTICATED":
        return f"this server asks who you are (HOTSHOE_TOKEN or HOTSHOE_TOKEN_FILE tells it): {text}"
    missing = [violation for violation in error.field_violations if f"{violation.field}:" not in text]
    if [violation.description for violation in missing] == [text]:
        text = f"{missing[0].field}: {text}"
    elif missing:
        text += " (" + "; ".join(f"{violation.field}: {violation.description}" for violation in missing) + ")"
    if error.retry_after is not None:
        text += f"; try again in {error.retry_after:g} s"
    return text


def exit_code(error: Exception) -> int:
    """The exit code that stands for the error's class."""
    from hotshoe.clients import errors

    match error:
        case errors.Unavailable():
            return UNREACHABLE
        case errors.NotFound() | errors.HubNotFound():
            return NOT_FOUND
        case errors.InvalidArgument() | errors.FailedPrecondition() | errors.PermissionDenied():
            return REFUSED
        case errors.InvalidAdapterDirectory() | errors.InvalidLayout() | errors.NotVerified() | errors.HubRefused():
            return REFUSED
        case errors.Aborted() | errors.AlreadyExists():
            return CONFLICT
        case errors.ResourceExhausted():
            return FULL
        case errors.DeadlineExceeded():
            return TIMED_OUT
    return FAILED
