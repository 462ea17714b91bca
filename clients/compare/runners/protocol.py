"""What a runner and the one who started it say to each other: one JSON object a line, on standard input and output.

    ask      {"do": "prepare" | "start" | "run", …}      in this order, "run" any number of times, until input ends
    answer   {"done": {…}}  or  {"failed": "reason"}

Standard library only: it runs in every rival's environment.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TextIO


@dataclass(frozen=True, slots=True)
class Setup:
    """What a runner may use, and how it shall serve."""

    home: str  # a folder of this environment: programs are built here
    converted: str  # a folder of these materials in this environment: models in the rival's own formats
    base: str  # Hugging Face directory, bfloat16
    gguf: str
    adapters: dict[str, str]  # name → PEFT directory; empty: the base alone
    resident: tuple[str, ...]  # of these, to be loaded before the first run
    max_concurrency: int
    max_tokens: int  # of one request, prompt included
    threads: int
    variant: str  # what the table of rivals says of the weights, such as "nf4"; "" where there is one way


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, for one adapter or, without a name, the base."""

    prompt: tuple[int, ...]  # token ids
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """An adapter to load while requests run, so many seconds after they were sent."""

    adapter: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all sent at once. Answers are greedy, of exactly `new_tokens`: no end of text stops them."""

    requests: tuple[Request, ...]
    new_tokens: int
    loads: tuple[Load, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        requests = tuple(Request(tuple(one["prompt"]), one["adapter"]) for one in data["requests"])
        return cls(requests, data["new_tokens"], tuple(Load(**one) for one in data["loads"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Answer:
    """The tokens of one request, and when each came, in seconds after all requests were sent."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Loaded:
    """When one load began and ended, on the same clock."""

    adapter: str
    started: float
    finished: float


@dataclass(slots=True)
class Outcome:
    """What a run gave, answers in the order of its requests."""

    answers: list[Answer]
    loads: list[Loaded] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls([Answer(**one) for one in data["answers"]], [Loaded(**one) for one in data["loads"]])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Engine(Protocol):
    """A rival. What it raises becomes the reason that is reported."""

    def prepare(self, setup: Setup) -> None:
        """Builds and converts what is not there yet. Not timed; may take minutes."""

    def start(self, setup: Setup) -> dict[str, str]:
        """Makes it ready to run; returns what is worth reporting, its version above all."""

    def run(self, workload: Workload) -> Outcome:
        """Sends all requests at once and waits for the last token."""

    def close(self) -> None:
        """Ends what `start` began, also if that failed."""


class RunClock:
    """Seconds since the requests were sent, and the loads that have come due since. One for each run."""

    def __init__(self, loads: tuple[Load, ...] = ()) -> None:
        self._waiting = sorted(loads, key=lambda load: load.at_seconds)
        self.loaded: list[Loaded] = []
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def load_due(self, load: Callable[[str], None]) -> None:
        """Performs the loads that are due: for engines that can load between two steps only."""
        for one in self._due():
            started = self.seconds()
            load(one.adapter)
            self.loaded.append(Loaded(one.adapter, started, self.seconds()))

    def _due(self) -> Iterator[Load]:
        while self._waiting and self._waiting[0].at_seconds <= self.seconds():
            yield self._waiting.pop(0)


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, a file or folder; `make` writes it under another name first, so that a half-made one is never taken."""
    if not path.exists():
        unfinished = path.with_name(f"partial-{path.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(path)
    return path


def serve(engine: Engine) -> None:
    """Answers on standard output until standard input ends. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; the lines that we were asked for stay clean
    signal.signal(signal.SIGTERM, _end)  # so that `close` ends the processes that the engine started
    try:
        for line in sys.stdin:
            _answer(engine, json.loads(line), answers)
    finally:
        engine.close()


def _answer(engine: Engine, question: dict[str, Any], answers: TextIO) -> None:
    done: dict[str, Any] = {}
    try:
        match question.pop("do"):
            case "prepare":
                engine.prepare(_setup(question))
            case "start":
                done = {"facts": engine.start(_setup(question))}
            case "run":
                done = engine.run(Workload.from_json(question)).to_json()
            case unknown:
                raise ValueError(f"do: {unknown!r} is none of prepare, start, run")
    except Exception as error:
        traceback.print_exc()
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
    else:
        answers.write(json.dumps({"done": done}) + "\n")


def _setup(question: dict[str, Any]) -> Setup:
    return Setup(**question | {"resident": tuple(question["resident"])})


def _end(*_: object) -> NoReturn:
    raise SystemExit(143)
