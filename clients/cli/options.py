"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from hotshoe.clients.cli.inputs import read_text

# As hotshoe.clients.channels has it; importing that would cost every `--help` the time to import gRPC.
DEFAULT_SERVER = "127.0.0.1:50051"

Server = Annotated[
    str,
    typer.Option(envvar="HOTSHOE_SERVER", metavar="HOST:PORT", help="The server; tls://HOST:PORT to use TLS."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Give up after this long.")]
Reference = Annotated[str, typer.Argument(metavar="REF", help="name, name:tag or name@sha256:<hex>")]
ApproximateRank = Annotated[
    int,
    typer.Option(min=0, metavar="R", help="Serve an update of full rank (HiRA, C3A, …) as its nearest of rank R."),
]
FullDigests = Annotated[bool, typer.Option("--full", help="Do not shorten digests.")]

TaskReference = Annotated[
    str,
    typer.Argument(metavar="REF[#TASK]", help="name, name:tag or name@sha256:<hex>; #TASK: one of its tasks, from 0"),
]
AdapterStack = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="REF[#TASK][=WEIGHT]", help="One more adapter of the stack; may be repeated."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens at most; 256, or what fits, if not said.")
]
Temperature = Annotated[float | None, typer.Option(metavar="T", help="0, the default, is greedy.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Sample among the likeliest that make up P.")]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Sample among the K likeliest; 0: all.")]
MinP = Annotated[float | None, typer.Option(metavar="P", help="Drop tokens less likely than P times the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(metavar="X", help="More than 1 discourages repetition.")]
PresencePenalty = Annotated[float | None, typer.Option(metavar="X", help="Subtracted from tokens already there.")]
FrequencyPenalty = Annotated[float | None, typer.Option(metavar="X", help="The same, times how often.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Same seed, same answer.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends the answer; may be repeated.")]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|TEXT", help="Answer with JSON of this schema, a file or its text."),
]
Regex = Annotated[str | None, typer.Option(metavar="PATTERN", help="Answer with what this matches as a whole.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", metavar="TEXT", help="Answer with one of these; may be repeated.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="The system message of the conversation.")]

BASE = "base"


def adapter_stack(reference: str, more: list[str] | None) -> list[tuple[str, float, int | None]]:
    """(reference, weight, task) of each adapter named; "base" names none. Raises ValueError for one that is none."""
    named = [] if reference == BASE else [reference]
    return [stacked(text) for text in (*named, *(more or ()))]


def stacked(text: str) -> tuple[str, float, int | None]:
    """Splits REF#TASK=WEIGHT, of which the reference must be there. Raises ValueError for a bad task or weight."""
    named, weight = weighted(text)
    reference, task = one_task(named)
    return reference, weight, task


def one_task(text: str) -> tuple[str, int | None]:
    """Splits REF#TASK; the task is None if it is not said. Raises ValueError for a bad one."""
    reference, mark, task = text.partition("#")
    if mark and not (task.isascii() and task.isdigit()):
        raise ValueError(f"{text!r}: what follows # must be a whole number, one of the adapter's tasks")
    return reference, int(task) if mark else None


def weighted(text: str) -> tuple[str, float]:
    """REF or REF=WEIGHT, which is 1 if it is not said. Raises ValueError for a bad weight."""
    reference, equals, weight = text.partition("=")
    try:
        return reference, float(weight) if equals else 1.0
    except ValueError:
        raise ValueError(f"{text!r}: what follows = must be a number, the adapter's weight") from None


def schema_text(given: str) -> str:
    """A JSON schema as text, or that of the file which is named. Raises OSError or ValueError for one that cannot."""
    return given if given.lstrip().startswith("{") else read_text(Path(given))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers of "1,8,16". Raises ValueError, which names the option."""
    try:
        return tuple(int(number) for number in text.split(",") if text)
    except ValueError:
        raise ValueError(f"--{option}: {text!r} is not a list of whole numbers") from None


def name_and_tag(text: str, *, default_tag: str | None = "latest") -> tuple[str, str]:
    """Splits NAME:TAG. Raises ValueError when there is no name, or no tag and no default."""
    name, colon, tag = text.partition(":")
    if not colon and default_tag is not None:
        tag = default_tag
    if not name or not tag or "@" in text or ":" in tag:
        raise ValueError(f"{text!r} is not NAME:TAG")
    return name, tag
