"""What a soak sends: adapters of every way to be served, requests that end in every way, and what disturbs them."""

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from adapter_files import poly_bytes
from hub_adapters import write_bottleneck
from peft_adapters import write_ia3, write_lora, write_prefix, write_prompt
from server_process import ServerProcess, upload
from tiny_models import base_shape
from transformers import PreTrainedModel

from hotshoe.protos.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    residency_pb2,
    residency_pb2_grpc,
)

INVOCATION = [300, 301, 302]  # what makes "called" act
WORDS = ("the", "shoe", "camera", "is", "hot", "a", "of", "light")


@dataclass
class Known:
    """A request, and what it was answered alone."""

    request: generation_pb2.GenerateRequest
    answer: Any = None

    @property
    def kinds(self) -> str:
        return "+".join(sorted(one.reference.partition("@")[0] for one in self.request.adapters)) or "base"


@dataclass
class Traffic:
    """Stubs, what there is to ask for, and how all that was asked ended."""

    server: ServerProcess
    channel: grpc.aio.Channel
    draw: random.Random
    known: list[Known] = field(default_factory=list)
    references: list[tuple[str, int | None]] = field(default_factory=list)  # and which task
    versions: list[str] = field(default_factory=list)
    most_tokens: int = 0
    ends: Counter[str] = field(default_factory=Counter)  # what was asked: how it ended
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.registry: Any = registry_pb2_grpc.RegistryServiceStub(self.channel)
        self.residency: Any = residency_pb2_grpc.ResidencyServiceStub(self.channel)

    async def ending(self, what: str, calling: Awaitable[Any], *may: str) -> Any:
        """The response, or the error; noted as wrong unless it is OK or one of `may`."""
        result: Any = None
        try:
            result, code = await calling, "OK"
        except grpc.aio.AioRpcError as error:
            result, code = error, error.code().name
        except asyncio.CancelledError:
            code = "CANCELLED"
        self.ends[f"{what}: {code}"] += 1
        if code not in ("OK", *may):
            self.wrong.append(f"{what}: {code} {result!r}")
        if code == "RESOURCE_EXHAUSTED":
            await asyncio.sleep(0.3 * self.draw.random())
        return result

    def copy_of_one(self, tokens: int) -> generation_pb2.GenerateRequest:
        """A known request that only its length ends."""
        request = generation_pb2.GenerateRequest()
        request.CopyFrom(self.draw.choice(self.known).request)
        request.stopping.max_new_tokens, request.stopping.ignore_eos = tokens, True
        del request.stopping.stop[:]
        return request


async def publish(traffic: Traffic, name: str, directory: Path, *tags: str) -> registry_pb2.Adapter:
    blobs = [await asyncio.to_thread(upload, traffic.server, path) for path in sorted(directory.iterdir())]
    request = registry_pb2.PublishAdapterRequest(name=name, tags=tags or ("latest",), blobs=blobs)
    return (await traffic.registry.PublishAdapter(request)).adapter


async def publish_kinds(traffic: Traffic, model: PreTrainedModel, directory: Path) -> None:
    """One adapter of each way to be served, and two that a tag moves between."""
    poly = directory / "poly"
    poly.mkdir(parents=True)
    for file, data in poly_bytes(base_shape(model), tasks=2).items():
        (poly / file).write_bytes(data)
    wide = ("q_proj", "o_proj", "down_proj")
    made = {
        "lora": write_lora(directory / "lora", model, seed=1),
        "wide": write_lora(directory / "wide", model, rank=16, targets=wide, seed=2),
        "called": write_lora(directory / "called", model, rank=4, seed=4, alora_invocation_tokens=INVOCATION),
        "ia3": write_ia3(directory / "ia3", model, seed=5),
        "prefix": write_prefix(directory / "prefix", model, tokens=5, seed=6, scale=0.3),
        "prompt": write_prompt(directory / "prompt", model, tokens=3, seed=7, scale=0.3),
        "narrow": write_bottleneck(directory / "narrow", model, seed=8, scale=0.1),
        "poly": poly,
    }
    for name, path in made.items():
        await publish(traffic, name, path)
        traffic.references += [(name, 0), (name, 1)] if name == "poly" else [(name, None)]
    for number in (1, 2):
        path = write_lora(directory / f"moving{number}", model, rank=4, seed=40 + number)
        traffic.versions.append((await publish(traffic, "moving", path, "now")).digest)
    traffic.references.append((f"moving@{traffic.versions[0]}", None))


def new_request(traffic: Traffic) -> generation_pb2.GenerateRequest:
    """Greedy or seeded, of any adapters: what is answered the same each time."""
    draw = traffic.draw
    request = generation_pb2.GenerateRequest(text="Once " + " ".join(draw.choices(WORDS, k=draw.randrange(1, 30))))
    request.stopping.max_new_tokens = draw.randrange(1, 24)
    request.stopping.ignore_eos = draw.random() < 0.7
    for name, task in draw.sample(traffic.references, draw.choice([0, 1, 1, 1, 2, 3])):
        weight = 1.0 if name in ("prefix", "prompt") else draw.choice([1.0, 0.5, -0.25])
        request.adapters.add(reference=name, weight=weight, task=task)
    if any(one.reference == "called" for one in request.adapters):
        del request.adapters[:]
        request.adapters.add(reference="called")
        request.token_ids.ids.extend([*draw.sample(range(32, 200), 20), *INVOCATION, 40, 41])
    if draw.random() < 0.4:
        request.logprobs = draw.randrange(4)
    if draw.random() < 0.2:
        request.prompt_logprobs = draw.randrange(3)
    if draw.random() < 0.3:
        request.stopping.stop.extend(draw.choice([["e s"], ["\n", "the"], ["zzz", "hot sh"]]))
    if draw.random() < 0.3:
        request.sampling.temperature, request.sampling.seed = 0.8, draw.randrange(1 << 40)
        request.sampling.top_p, request.sampling.top_k = draw.choice([(1.0, 0), (0.9, 20)])
    if draw.random() < 0.2:
        request.n = draw.randrange(1, 4)
    if draw.random() < 0.2:
        request.sampling.repetition_penalty = 1.3
    return request


def answer_of(response: generation_pb2.GenerateResponse) -> Any:
    """Every token, number and text of an answer; not when it came."""
    return (
        [
            (one.text, list(map(_token, one.tokens)), one.finish_reason, one.stop_sequence)
            for one in response.completions
        ],
        list(map(_token, response.prompt_tokens)),
        [(adapter.digest, adapter.weight) for adapter in response.adapters],
    )


def _token(token: generation_pb2.Token) -> Any:
    return token.token_id, token.logprob, token.rank, [(one.token_id, one.logprob) for one in token.alternatives]


async def ask_known(traffic: Traffic) -> None:
    known = traffic.draw.choice(traffic.known)
    metadata = [("x-tenant", traffic.draw.choice("abc"))]
    if not known.request.HasField("n") and traffic.draw.random() < 0.5:
        calling = _whole_stream(traffic, known.request, metadata)
    else:
        calling = traffic.generation.Generate(known.request, metadata=metadata)
    response = await traffic.ending("known", calling, "RESOURCE_EXHAUSTED")
    if isinstance(response, generation_pb2.GenerateResponse):
        if answer_of(response) == known.answer:
            traffic.equal += 1
        else:
            traffic.wrong.append(f"{known.kinds}: {known.request!r}\nalone {known.answer}\nnow   {answer_of(response)}")


async def _whole_stream(traffic: Traffic, request: Any, metadata: Any) -> generation_pb2.GenerateResponse:
    text, tokens, last = "", [], generation_pb2.StreamGenerateResponse()
    call = generation_pb2.StreamGenerateRequest(request=request)
    async for last in traffic.generation.StreamGenerate(call, metadata=metadata):
        text += last.text_delta
        tokens += last.tokens
    last.final.completions[0].text = text
    last.final.completions[0].tokens.extend(tokens)
    return last.final


async def ask_and_leave(traffic: Traffic) -> None:
    request = traffic.copy_of_one(40)
    request.ClearField("n")
    request.request_id = traffic.draw.choice(["", "one", "two", "three"])
    calling = traffic.generation.StreamGenerate(generation_pb2.StreamGenerateRequest(request=request))
    left = traffic.draw.randrange(6)
    if traffic.draw.random() < 0.3:
        asyncio.get_running_loop().call_later(traffic.draw.random() * 0.3, calling.cancel)

    async def read() -> None:
        nonlocal left
        async for _ in calling:
            left -= 1
            if left < 0:
                calling.cancel()

    await traffic.ending("left", read(), "CANCELLED", "RESOURCE_EXHAUSTED")


async def ask_with_deadline(traffic: Traffic) -> None:
    calling = traffic.generation.Generate(traffic.copy_of_one(40), timeout=traffic.draw.random() * 0.5)
    await traffic.ending("deadline", calling, "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


async def ask_time_limit(traffic: Traffic) -> None:
    request = traffic.copy_of_one(60)
    request.stopping.time_limit.FromMilliseconds(traffic.draw.randrange(1, 400))
    await traffic.ending("time limit", traffic.generation.Generate(request), "RESOURCE_EXHAUSTED")


async def ask_score(traffic: Traffic) -> None:
    request = generation_pb2.ScoreRequest(text="The shoe is", choices=[" hot", " cold", " of light"])
    [(name, task)] = traffic.draw.sample(traffic.references, 1)
    request.adapters.add(reference=name, task=task)
    await traffic.ending("score", traffic.generation.Score(request), "RESOURCE_EXHAUSTED")


async def ask_at_the_limit(traffic: Traffic) -> None:
    """Exactly what fits, and one token more."""
    ids = [50 + index % 60 for index in range(traffic.most_tokens - 1)]
    request = generation_pb2.GenerateRequest(token_ids={"ids": ids}, stopping={"max_new_tokens": 1})
    await traffic.ending("limit", traffic.generation.Generate(request), "RESOURCE_EXHAUSTED")
    request.token_ids.ids.append(50)
    await _refused(traffic, request, "INVALID_ARGUMENT")


async def ask_nonsense(traffic: Traffic) -> None:
    wrong: list[dict[str, Any]] = [
        {"sampling": {"temperature": float("nan")}},
        {"adapters": [{"reference": "lora", "task": 1}]},
        {"adapters": [{"reference": "poly", "task": 9}]},
        {"stopping": {"stop": [""]}},
        {"text": "huge " * 200_000},
        {"text": ""},
    ]
    fields = traffic.draw.choice(wrong)
    await _refused(traffic, generation_pb2.GenerateRequest(**{"text": "x", **fields}), "INVALID_ARGUMENT")
    nobody = generation_pb2.GenerateRequest(text="x", adapters=[{"reference": "nobody"}])
    await _refused(traffic, nobody, "NOT_FOUND")


async def _refused(traffic: Traffic, request: generation_pb2.GenerateRequest, code: str) -> None:
    response = await traffic.ending("refused", traffic.generation.Generate(request), code)
    if isinstance(response, generation_pb2.GenerateResponse):
        traffic.wrong.append(f"answered, and not refused: {request!r}"[:1000])


async def move_tag(traffic: Traffic) -> None:
    reference = registry_pb2.GetAdapterRequest(reference="moving:now")
    now = (await traffic.registry.GetAdapter(reference)).adapter.digest
    to = traffic.draw.choice(traffic.versions)
    request = registry_pb2.UpdateTagRequest(name="moving", tag="now", digest=to, expected_digest=now)
    await traffic.ending("move", traffic.registry.UpdateTag(request), "ABORTED")
    back = registry_pb2.RollBackTagRequest(name="moving", tag="now")
    await traffic.ending("roll back", traffic.registry.RollBackTag(back), "ABORTED")


async def load_and_unload(traffic: Traffic) -> None:
    draw = traffic.draw
    name, task = draw.choice(traffic.references)
    tier = draw.choice([residency_pb2.TIER_HOST, residency_pb2.TIER_DEVICE])
    request = residency_pb2.LoadAdapterRequest(reference=name, tier=tier, pin=draw.random() < 0.3, task=task)
    if draw.random() < 0.5:
        timeout = draw.choice([0.01, 5.0])
        call = traffic.residency.LoadAdapter(request, timeout=timeout)
        await traffic.ending("load", _read(call), "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    unload = residency_pb2.UnloadAdapterRequest(reference=name)
    await traffic.ending("unload", traffic.residency.UnloadAdapter(unload))


async def keep_store(traffic: Traffic) -> None:
    collect = registry_pb2.CollectGarbageRequest(grace_seconds=3600)
    await traffic.ending("collect", traffic.registry.CollectGarbage(collect))
    await traffic.ending("check", _read(traffic.registry.CheckStore(registry_pb2.CheckStoreRequest())))


async def publish_damaged(traffic: Traffic, source: Path) -> None:
    directory = Path(tempfile.mkdtemp(dir=source.parent))
    for path in source.iterdir():
        data = bytearray(path.read_bytes())
        for _ in range(traffic.draw.randrange(1, 4)):
            data[traffic.draw.randrange(min(len(data), 400))] ^= 1 << traffic.draw.randrange(8)
        (directory / path.name).write_bytes(data)
    await traffic.ending("damaged", publish(traffic, "damaged", directory), "INVALID_ARGUMENT", "FAILED_PRECONDITION")
    shutil.rmtree(directory)


async def _read(call: Any) -> None:
    async for _ in call:
        pass


MIX: Sequence[tuple[int, Callable[[Traffic], Awaitable[None]]]] = (
    (40, ask_known), (12, ask_and_leave), (10, ask_with_deadline), (6, ask_time_limit), (6, ask_score),
    (2, ask_at_the_limit), (4, ask_nonsense), (3, move_tag), (6, load_and_unload), (1, keep_store),
)  # fmt: skip
