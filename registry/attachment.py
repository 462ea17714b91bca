"""What is to be kept about an adapter, checked before it is: its type, its name, and a signature's form."""

import json
import re
from collections.abc import Mapping

from hotshoe.registry.errors import InvalidDocument
from hotshoe.registry.foreign_words import check_printable, shown_text
from hotshoe.registry.referrer import EVALUATION_TYPE
from hotshoe.registry.signing.bundle import BUNDLE_TYPE, read_bundle
from hotshoe.registry.signing.errors import InvalidBundle

MAX_DOCUMENT_BYTES = 1 << 20
# RFC 6838's names, with the "+json" and the parameters that media types have.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def check_attachment(
    subject: str, document: bytes, *, artifact_type: str, file_name: str, annotations: Mapping[str, str]
) -> None:
    """Accepts documents of up to 1 MiB of any media type, of a signature's only what signs `subject`, and of an
    evaluation's only JSON objects.

    Whose signature it is, and whether that counts, is for the policy to say.

    Raises:
        InvalidDocument: `field` names what is wrong.
    """
    if not _MEDIA_TYPE.fullmatch(artifact_type):
        raise InvalidDocument("artifact_type", f"expected a media type, not '{shown_text(artifact_type)}'")
    if not _FILE_NAME.fullmatch(file_name):
        raise InvalidDocument("file_name", f"expected a plain file name, not '{shown_text(file_name)}'")
    if not 1 <= len(document) <= MAX_DOCUMENT_BYTES:
        raise InvalidDocument("document", f"expected 1 to {MAX_DOCUMENT_BYTES} bytes, not {len(document)}")
    check_printable(annotations, InvalidDocument)
    if artifact_type == BUNDLE_TYPE:
        _check_bundle(subject, document)
    if artifact_type == EVALUATION_TYPE:
        _check_evaluation(document)


def _check_bundle(subject: str, document: bytes) -> None:
    """Other predicates, such as provenance, are welcome: they sign the same subject, and count as no signature."""
    try:
        bundle = read_bundle(document)
    except InvalidBundle as error:
        raise InvalidDocument("document", str(error)) from None
    if subject not in bundle.subjects:
        raise InvalidDocument("document", f"its subject is not {subject}")


def _check_evaluation(document: bytes) -> None:
    try:
        report = json.loads(document)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        raise InvalidDocument("document", "expected a JSON object, as an evaluation is")
