"""hotshoe chat: a conversation in the terminal."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotshoe.clients.cli import options as opt
from hotshoe.clients.cli import output
from hotshoe.clients.cli.failures import describe
from hotshoe.clients.cli.run import print_answer, whole_answer

if TYPE_CHECKING:
    from hotshoe.clients import Client

Stack = list[tuple[str, float, int | None]]

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

    options = {  # None: the server's default
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    stack = opt.adapter_stack(reference, adapter)
    with Client(server) as client:
        info = client.model_info()  # an unreachable server is told before the first question
        conversation = Conversation(client, stack, system, options, json)
        if sys.stdin.isatty() and not json:
            expect_adapters(client, stack)
            conversation.on_change = partial(expect_adapters, client)
            print(f"{info.base_model} with {reference} at {server}. /help lists the commands.")
        conversation.run(questions())


def expect_adapters(client: "Client", adapters: Stack) -> None:
    """Raises NotFound for an adapter that nobody can be answered through, before anything is asked."""
    from hotshoe.clients import NotFound, PermissionDenied

    for reference, _, _ in adapters:
        try:
            client.get_adapter(reference)
        except PermissionDenied:  # who may only generate learns of it with the first answer
            return
        except NotFound:
            if "@" not in reference:  # what is named by digest may yet come from another registry
                raise


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
        adapters: Stack,
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
        self.on_change: Callable[[Stack], None] = lambda adapters: None  # raises for those that will not do

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
                self._change(first, more)
            case ["/help"]:
                print(HELP, file=sys.stderr)
            case _:
                print(f"no command {line.strip()}\n{HELP}", file=sys.stderr)

    def _change(self, first: str, more: list[str]) -> None:
        """Other adapters from now on; those there were if that fails."""
        from hotshoe.clients import CallError, Unavailable

        try:
            adapters = opt.adapter_stack(first, more)
            self.on_change(adapters)
        except ValueError as error:
            print(error, file=sys.stderr)
        except Unavailable:
            raise
        except CallError as error:
            print(f"hotshoe: {describe(error)}", file=sys.stderr)
        else:
            self._adapters = adapters

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
