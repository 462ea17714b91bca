"""Where an adapter lies on a remote, as it is written on the command line."""

import pytest

from hotshoe.clients.cli.locations import split_location


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci://host/team/a:v1", ("oci://host/team", "a:v1")),
        ("oci://host:5000//team/a:v1", ("oci://host:5000", "team/a:v1")),
        ("oci://host:5000/a", ("oci://host:5000", "a")),
        ("oci://host/x//team/a", ("oci://host/x", "team/a")),
        ("s3://bucket/x/a@sha256:00", ("s3://bucket/x", "a@sha256:00")),
        ("dir:///srv/store//team/a:v1", ("dir:///srv/store", "team/a:v1")),
        ("dir:///srv/store/a", ("dir:///srv/store", "a")),
    ],
)
def test_a_location_is_a_remote_and_a_reference(text: str, expected: tuple[str, str]) -> None:
    assert split_location(text) == expected


@pytest.mark.parametrize("text", ["a:v1", "oci://host", "oci://host/", "oci://host//", "//a/b", "oci:///a", "dir:///a"])
def test_what_is_no_location(text: str) -> None:
    with pytest.raises(ValueError, match="is not REMOTE/NAME"):
        split_location(text)
