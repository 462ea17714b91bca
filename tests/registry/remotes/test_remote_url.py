"""Where a remote is: what is read, and what is refused before anything is connected to."""

import pytest

from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.remotes.remote_url import RemoteUrl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci://ghcr.io/acme/adapters", ("oci", "ghcr.io", "acme/adapters", True)),
        ("oci://registry.example:5000", ("oci", "registry.example:5000", "", True)),
        ("oci://127.0.0.1:5000/x/", ("oci", "127.0.0.1:5000", "x", False)),
        ("oci://[::1]:5000/x", ("oci", "[::1]:5000", "x", False)),
        ("oci://localhost/x", ("oci", "localhost", "x", False)),
        ("oci+https://127.0.0.1:5000/x", ("oci", "127.0.0.1:5000", "x", True)),
        ("oci+http://registry.example/x", ("oci", "registry.example", "x", False)),
        ("s3://bucket/some/prefix", ("s3", "bucket", "some/prefix", True)),
        ("s3://bucket?endpoint=http://127.0.0.1:8333", ("s3", "bucket", "", False)),
        ("s3+http://bucket/x?endpoint=http://minio:9000&region=eu", ("s3", "bucket", "x", False)),
        ("dir:///srv/adapters", ("dir", "", "/srv/adapters", True)),
    ],
)
def test_what_is_read(text: str, expected: tuple[str, str, str, bool]) -> None:
    url = RemoteUrl.parse(text)
    assert (url.kind, url.host, url.prefix, url.secure) == expected and str(url) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci",
        "ghcr.io/acme",
        "http://ghcr.io/x",
        "oci://",
        "oci:///x",
        "oci://user:secret@ghcr.io/x",
        "oci://ghcr.io/x?y=1",
        "oci://ghcr.io/x#y",
        "oci://ghcr.io/UPPER",
        "oci://ghcr.io/a//b",
        "oci://ghcr.io/../x",
        "oci://ghcr.io:99999/x",
        "oci://ghcr.io:port/x",
        "oci://a b/x",
        "oci://a\nb/x",
        "oci://[::1/x",
        "oci://-a/x",
        "s3://b/x",
        "s3://bucket:80/x",
        "s3://bucket/x?secret=1",
        "s3://bucket/x?endpoint=ftp://x",
        "s3://bucket/x?endpoint=http://minio:9000",
        "dir://relative/path",
        "dir:///a/../b",
        "dir:///a\0b",
        "file:///etc",
        "oci+ftp://x/y",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        RemoteUrl.parse(text)
    assert "secret@" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_remote_contains_what_lies_beneath_it() -> None:
    parse = RemoteUrl.parse
    root = parse("oci://host/team")
    assert root.contains(root) and root.contains(parse("oci://host/team/a")) and parse("oci://host").contains(root)
    for other in ("oci://host/teams", "oci://host", "oci://other/team", "oci+http://host/team", "s3://host/team"):
        assert not root.contains(parse(other))
    assert parse("dir:///srv").contains(parse("dir:///srv/x")) and not parse("dir:///srv").contains(parse("dir:///etc"))
