"""References: the grammar, and that nothing else passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshoe.registry.digest import check_digest, digest_hex, digest_of
from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.reference import AdapterRef, check_name, check_tag

HEX = "0123456789abcdef" * 4
WORDS = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,5}){0,2}", fullmatch=True)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map("/".join)
TAGS = st.from_regex(r"[A-Za-z0-9]{1,5}([._-][A-Za-z0-9]{1,5}){0,3}", fullmatch=True)
DIGESTS = st.binary(max_size=8).map(digest_of)

BAD_NAMES = (
    *("", ".", "..", "/", "a/", "/a", "a//b", "a/../b", "../a", "a..b", "a__b", "a-", "_a", "A", "aB"),
    *("a b", " a", "a ", "a\n", "a\0", "a\r\n", "a\x1b[2J", "a%2e", "{{7*7}}", "a\\b", "a:b:c", "a@b", "a,b"),
    *("~a", "$a", "a*", "a?", "a#", "a" * 201, "a" * 4096),
    *("\u0430dapter", "cafe\u0301", "caf\u00e9", "a\u202eb", "\uff41", "a\u0660", "\u0661"),
)
BAD_TAGS = ("", ".", "..", "-v1", "v1-", "v..1", "v__1", "v/1", "v:1", "v@1", "v 1", "v1\n", "v\0", "é", "٣", "a" * 129)
BAD_DIGESTS = (
    *("", "sha256:", HEX, f"sha256:{HEX.upper()}", f"sha256:{HEX}0", f"sha256:{HEX[1:]}", f"SHA256:{HEX}"),
    *(f"sha512:{HEX}", f"md5:{HEX[:32]}", f"sha256:{HEX}\n", f" sha256:{HEX}", f"sha256:../{HEX[3:]}"),
    *(f"sha256-{HEX}", f"sha256:{HEX[:-1]}\u0661", f"sha256:{HEX[:-1]}\uff11", f"sha256:{HEX[:-1]}g"),
    *(f"sha256:{HEX[:-1]}\0", "sha256:" + "../" * 21 + "a"),
)


@given(name=NAMES, tag=TAGS)
def test_a_tag_reference_reads_back_as_it_was_written(name: str, tag: str) -> None:
    ref = AdapterRef.parse(f"{name}:{tag}")
    assert (ref.name, ref.tag, ref.digest) == (name, tag, None)
    assert AdapterRef.parse(str(ref)) == ref


@given(name=NAMES, digest=DIGESTS)
def test_a_digest_reference_reads_back_as_it_was_written(name: str, digest: str) -> None:
    ref = AdapterRef.parse(f"{name}@{digest}")
    assert (ref.name, ref.tag, ref.digest) == (name, None, digest)
    assert AdapterRef.parse(str(ref)) == ref


@given(text=st.text(max_size=40))
def test_any_text_is_a_canonical_reference_or_refused(text: str) -> None:
    try:
        ref = AdapterRef.parse(text)
    except InvalidReference:
        return
    assert str(ref) in (text, f"{text}:latest")


def test_a_bare_name_means_its_latest_tag() -> None:
    assert AdapterRef.parse("team/sql") == AdapterRef("team/sql", "latest", None)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidReference):
        check_name(name)
    with pytest.raises(InvalidReference):
        AdapterRef.parse(f"{name}@sha256:{HEX}")


@pytest.mark.parametrize("tag", [*BAD_TAGS, f"sha256-{HEX}"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidReference):
        check_tag(tag)
    with pytest.raises(InvalidReference):
        AdapterRef.parse(f"a:{tag}")


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_what_is_no_digest_is_refused(digest: str) -> None:
    for check in (check_digest, digest_hex, lambda text: AdapterRef.parse(f"a@{text}")):
        with pytest.raises(InvalidReference):
            check(digest)


def test_a_reference_with_a_tag_and_a_digest_is_refused() -> None:
    with pytest.raises(InvalidReference, match="name 'a:v1'"):
        AdapterRef.parse(f"a:v1@sha256:{HEX}")
