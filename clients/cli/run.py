"""hotshoe run: one prompt, its answer streamed."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotshoe.clients.cli import options as opt
from hotshoe.clients.cli import output

if TYPE_CHECKING:
    from hotshoe.clients import AnswerStream
    from hotshoe.protos.v1.generation_pb2 import GenerateResponse, ResolvedAdapter, Token


def run(
    reference: Annotated[str, typer.Argument(metavar="REF[#TASK]|base", help="An adapter, or the base alone.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="- reads standard input.")],
    adapter: opt.AdapterStack = None,
    raw: Annotated[
        bool, typer.Option("--raw/--chat", help="Continue the text as it is, or answer it as a chat message.")
    ] = False,
    system: opt.System = None,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to the token limit.")] = False,
    json_schema: opt.JsonSchema = None,
    regex: opt.Regex = None,
    choice: opt.Choices = None,
    time_limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="End the answer as it is then.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell speed and digests on standard error.")] = False,
    timeout: opt.Timeout = 600.0,
    server: opt.Server = opt.DEFAULT_SERVER,
    json: opt.Json = False,
) -> None:
    """Answer one prompt, through adapters or the base alone."""
    from hotshoe.clients import Client

    options: Any = {  # None: the server's default
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop or None,
        "ignore_eos": ignore_eos or None,
        "json_schema": None if json_schema is None else opt.schema_text(json_schema),
        "regex": regex,
        "choices": choice or None,
        "time_limit": time_limit,
    }
    content = _content(prompt, raw=raw, system=system)
    with (
        Client(server) as client,
        client.stream(content, adapters=opt.adapter_stack(reference, adapter), timeout=timeout, **options) as answer,
    ):
        if json:
            return output.print_json(whole_answer(answer))
        print_answer(answer)
        if stats:
            print(speed(answer.final), file=sys.stderr)


def _content(prompt: str, *, raw: bool, system: str | None) -> str | list[Any]:
    """What is asked: text to continue, or the messages of a chat."""
    if raw and system is not None:
        raise ValueError("--system needs --chat")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ValueError("PROMPT: expected some text, found none")
    return text if raw else conversation(system, text)


def conversation(system: str | None, text: str) -> list[Any]:
    """The chat messages of a first turn."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": text}]


def print_answer(answer: "AnswerStream") -> str:
    """Prints the deltas as they come; returns the whole text."""
    parts = []
    for delta in answer:
        parts.append(delta.text_delta)
        print(output.printable(delta.text_delta), end="", flush=True)
    print(flush=True)
    return "".join(parts)


def whole_answer(answer: "AnswerStream") -> "GenerateResponse":
    """The final message with the text and the tokens put back in."""
    text: list[str] = []
    tokens: list[Token] = []
    for delta in answer:
        text.append(delta.text_delta)
        tokens += delta.tokens
    whole = answer.final
    if not whole.completions:
        whole.completions.add()
    whole.completions[0].text = "".join(text)
    del whole.completions[0].tokens[:]
    whole.completions[0].tokens.extend(tokens)
    return whole


def speed(final: "GenerateResponse") -> str:
    """One line: which adapters answered, how many tokens, how long until the first."""
    usage = final.usage
    adapters = ", ".join(map(_used, final.adapters)) or "base"
    return (
        f"{adapters}: {usage.prompt_tokens} prompt tokens ({usage.cached_prompt_tokens} cached), "
        f"{usage.completion_tokens} new; first after {usage.time_to_first_token.ToNanoseconds() / 1e6:.0f} ms"
    )


def _used(adapter: "ResolvedAdapter") -> str:
    task = f"#{adapter.task}" if adapter.HasField("task") else ""
    return f"{adapter.reference}{task} {output.short_digest(adapter.digest)}"
