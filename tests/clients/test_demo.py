"""The demo's expectations: it must notice every way in which the server could fall short."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotshoe.clients.demo import MIN_STREAMS, DemoFailed, demo_directories, plan_streams, stacks_of, step_proof
from hotshoe.clients.demo_report import DemoReport, Merged, Published, Stack, StepProof, TagMove, shortcomings

PIRATE, JSON, EMOJI, FRENCH = (
    Published("pirate", "LORA", "sha256:1", 10),
    Published("json", "LORA", "sha256:2", 10),
    Published("emoji", "IA3", "sha256:3", 10),
    Published("french", "PREFIX_TUNING", "sha256:4", 10),
)


def good_report() -> DemoReport:
    report = DemoReport(adapters=[PIRATE, FRENCH])
    report.streams = plan_streams(report.adapters)
    for stream in report.streams:
        stream.text = f"answer of {stream.adapter}"
        stream.digests = tuple(a.digest for a in report.adapters if a.name == stream.adapter)
        stream.tokens = 5
    old, new = report.streams[1], report.streams[2]
    report.move = TagMove("sha256:1", "sha256:4", 3, replace(old), replace(new), stale_move_refused=True)
    stacked = replace(old, adapter="1 pirate + 1 french", digests=("sha256:1", "sha256:4"))
    report.stacks = [Stack({"pirate": 1.0, "french": 1.0}, stacked)]
    blend = replace(old, adapter="blend", digests=("sha256:8",))
    report.merged = Merged({"pirate": 0.9, "french": 0.4}, "sha256:8", ("sha256:1", "sha256:4"), 0.9, blend)
    report.proof = StepProof(steps=10, steps_with_several=4, most_adapters_at_least=2)
    return report


def test_a_good_report_has_no_shortcoming() -> None:
    assert list(shortcomings(good_report())) == []


def spoil_digest(report: DemoReport) -> None:
    report.streams[1].digests = ("sha256:9",)


def answer_base_through_an_adapter(report: DemoReport) -> None:
    report.streams[0].digests = ("sha256:1",)


def answer_nothing(report: DemoReport) -> None:
    report.streams[2].text = " \n"


def answer_as_the_base(report: DemoReport) -> None:
    report.streams[1].text = report.streams[0].text


def stack_only_one(report: DemoReport) -> None:
    report.stacks[0].stream.digests = ("sha256:1",)


def merged(**changes) -> Callable[[DemoReport], None]:
    def spoil(report: DemoReport) -> None:
        assert report.merged is not None
        report.merged = replace(report.merged, **changes)

    return spoil


def serve_one_at_a_time(report: DemoReport) -> None:
    report.proof = StepProof(steps=10, steps_with_several=0, most_adapters_at_least=1)


def moved(**changes) -> Callable[[DemoReport], None]:
    def spoil(report: DemoReport) -> None:
        assert report.move is not None
        report.move = replace(report.move, **changes)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_digest, "pirate answered as ('sha256:9',), published was ('sha256:1',)"),
        (answer_base_through_an_adapter, "the base model answered as ('sha256:1',), published was ()"),
        (answer_nothing, "french answered nothing"),
        (answer_as_the_base, "pirate answered as the base model alone does"),
        (stack_only_one, "the stack 1 pirate + 1 french answered as ('sha256:1',)"),
        (merged(parents=("sha256:1",)), "names other parents: ('sha256:1',)"),
        (merged(digest="sha256:9"), "answered as ('sha256:8',), published was sha256:9"),
        (serve_one_at_a_time, "no step held two adapters"),
        (moved(new_digest="sha256:1"), "two different adapters"),
        (moved(tokens_before=5), "the stream had ended before the tag moved"),
        (moved(old_digest="sha256:7"), "the running stream answered as ('sha256:1',), not as sha256:7"),
        (moved(new_digest="sha256:7"), "the stream after the move answered as ('sha256:4',), not as sha256:7"),
        (moved(stale_move_refused=False), "was not refused"),
    ],
)
def test_every_shortcoming_is_noticed(spoil: Callable[[DemoReport], None], said: str) -> None:
    report = good_report()
    spoil(report)
    assert any(said in sentence for sentence in shortcomings(report))


@pytest.mark.parametrize("adapters", [[PIRATE, JSON], [PIRATE, JSON, EMOJI, FRENCH]])
def test_all_adapters_and_the_base_stream_at_once_and_enough_of_them(adapters: list[Published]) -> None:
    streams = plan_streams(adapters)
    assert len(streams) >= MIN_STREAMS
    asked = {(stream.adapter, stream.sampled) for stream in streams}
    assert asked == {(name, sampled) for name in ("", *(a.name for a in adapters)) for sampled in (False, True)}


@pytest.mark.parametrize(
    ("adapters", "stacks"),
    [
        ([EMOJI, FRENCH, JSON, PIRATE], [{"json": 0.9, "pirate": 0.4}, {"json": 0.4, "pirate": 0.9}]),
        ([EMOJI, FRENCH, PIRATE], [{"pirate": 0.9, "emoji": 0.4}, {"pirate": 0.4, "emoji": 0.9}]),
        ([FRENCH, PIRATE], [{"french": 1.0, "pirate": 1.0}]),
    ],
)
def test_a_stack_weighs_only_what_can_be_weighed(adapters: list[Published], stacks: list[dict[str, float]]) -> None:
    assert stacks_of(adapters) == stacks


def test_the_proof_counts_the_steps_between_two_readings() -> None:
    infinity = float("inf")
    before = {0.0: 5, 1.0: 9, 2.0: 10, 4.0: 10, infinity: 10}
    after = {0.0: 5, 1.0: 19, 2.0: 21, 4.0: 30, infinity: 30}
    assert step_proof(before, after) == StepProof(steps=20, steps_with_several=10, most_adapters_at_least=3)
    assert step_proof({}, {0.0: 7, 1.0: 7, infinity: 7}) == StepProof(7, 0, 0)


def test_a_directory_without_two_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="needs at least two adapters"):
        demo_directories(tmp_path)
