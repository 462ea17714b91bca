"""What is typed on the command line becomes references, weights, names and tags."""

import pytest

from hotshoe.clients.channels import DEFAULT_SERVER
from hotshoe.clients.cli import options


@pytest.mark.parametrize(
    ("reference", "more", "stack"),
    [
        ("base", None, []),
        ("pirate", None, [("pirate", 1.0, None)]),
        (
            "pirate:v2=0.5",
            ["json=-1", "a@sha256:00"],
            [("pirate:v2", 0.5, None), ("json", -1.0, None), ("a@sha256:00", 1.0, None)],
        ),
        ("base", ["pirate=2"], [("pirate", 2.0, None)]),
        ("skills:v2#1", ["a@sha256:00#12=0.5"], [("skills:v2", 1.0, 1), ("a@sha256:00", 0.5, 12)]),
    ],
)
def test_adapters_weights_and_tasks_are_read(
    reference: str, more: list[str] | None, stack: list[tuple[str, float, int | None]]
) -> None:
    assert options.adapter_stack(reference, more) == stack


@pytest.mark.parametrize("text", ["pirate=", "pirate=strong", "pirate=1=2"])
def test_a_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        options.adapter_stack(text, None)


@pytest.mark.parametrize("text", ["skills#", "skills#two", "skills#-1", "skills#1#2", "skills#1.5=2"])
def test_a_task_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        options.adapter_stack(text, None)


def test_a_name_without_a_tag_is_the_latest() -> None:
    assert options.name_and_tag("pirate") == ("pirate", "latest")
    assert options.name_and_tag("pirate:v2") == ("pirate", "v2")


@pytest.mark.parametrize("text", ["", ":v2", "pirate:", "pirate@sha256:00", "pirate", "pirate:v2:v3"])
def test_what_has_no_name_or_no_tag_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME:TAG"):
        options.name_and_tag(text, default_tag=None)


def test_the_default_server_is_the_clients() -> None:
    assert options.DEFAULT_SERVER == DEFAULT_SERVER
