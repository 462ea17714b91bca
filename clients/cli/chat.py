"""hotshoe chat: a conversation in the terminal."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotshoe.clients.cli import options as opt
from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import describe
from hotshoe.clients.cli.run import print_answer, whole_answer

if TYPE_CHECKING:
    from hotshoe.clients import Client

HELP = """\
/adapter REF[#TASK][=WEIGHT]…  answer through other adapters from now on; /adapter base: through none
/reset                  forget the conversation
/quit                   leave (or Ctrl-D); Ctrl-C stops an answer"""


def chat(
    reference: Annotated[str, typer.Argument(metavar="REF[#TASK]", help="An adapter, or base.")] = opt.BASE,
    adapter: opt.AdapterStack = None,
    system: opt.System = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of an answer at most.")] = 512,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    server: opt.Server = opt.DEFAULT_SERVER,
    json: opt.Json = False,
) -> None:
    """Talk with the model; /help lists the commands. With --json each line of input gives one JSON line."""
    from hotshoe.clients import Client

    asked = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    with Client(server) as client:
        info = client.model_info()  # an unreachable server is told before the first question
        if sys.stdin.isatty() and not json:
            print(f"{info.base_model} with {reference} at {server}. /help lists the commands.")
        Conversation(client, opt.adapter_stack(reference, adapter), system, options, json).run(questions())


def questions() -> Iterator[str]:
    """Lines typed, until the end of input; a prompt is shown only to somebody who types."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  gives input() its line editing

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


class Conversation:
    """The turns so far, and through which adapters the next is answered."""

    def __init__(
        self,
        client: "Client",
        adapters: list[tuple[str, float, int | None]],
        system: str | None,
        options: dict[str, Any],
        json: bool,
    ) -> None:
        self._client = client
        self._adapters = adapters
        self._options = options
        self._json = json
        self._opening: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        self._turns = list(self._opening)

    def run(self, lines: Iterator[str]) -> None:
        for line in lines:
            if line.strip() == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line.strip():
                self._answer(line)

    def _command(self, line: str) -> None:
        match line.split():
            case ["/reset"]:
                self._turns = list(self._opening)
            case ["/adapter", first, *more]:
                try:
                    self._adapters = opt.adapter_stack(first, more)
                except ValueError as error:
                    print(error, file=sys.stderr)
            case ["/help"]:
                print(HELP, file=sys.stderr)
            case _:
                print(f"no command {line.strip()}\n{HELP}", file=sys.stderr)

    def _answer(self, question: str) -> None:
        """Answers, and keeps both turns; a turn that failed or was interrupted leaves the conversation as it was."""
        from hotshoe.clients import CallError, Unavailable

        turns = [*self._turns, {"role": "user", "content": question}]
        try:
            with self._client.stream(turns, adapters=self._adapters, **self._options) as answer:
                if self._json:
                    whole = whole_answer(answer)
                    text = whole.completions[0].text
                    output.print_json(whole)
                else:
                    text = print_answer(answer)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
            return
        except Unavailable:
            raise
        except CallError as error:
            print(f"hotshoe: {describe(error)}", file=sys.stderr)
            return
        self._turns = [*turns, {"role": "assistant", "content": text}]
