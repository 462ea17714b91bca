"""Where an adapter lies on a remote, as people write it on the command line."""


def split_location(text: str) -> tuple[str, str]:
    """The remote and the reference of "REMOTE/NAME:TAG"; NAME is what follows "//", or else the last part of the path.

        oci://host/team/a:v1 → oci://host/team, a:v1        oci://host//team/a:v1 → oci://host, team/a:v1

    Raises:
        ValueError: it is no such location.
    """
    scheme, separator, rest = text.partition("://")
    remote, marked, reference = rest.partition("//")
    if not marked:
        remote, marked, reference = rest.rpartition("/")
    if not (scheme and separator and remote.strip("/") and marked and reference):
        raise ValueError(f"{text!r} is not REMOTE/NAME, REMOTE/NAME:TAG or REMOTE/NAME@DIGEST, as oci://host/team/a:v1")
    return f"{scheme}://{remote}", reference
