"""What a publisher hands in, checked before anything of it is read."""

from collections.abc import Mapping, Sequence

from hotshoe.registry.digest import digest_hex, is_digest
from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.foreign_words import annotation_field, check_printable, shown_text
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.manifest import (
    ANNOTATION_PREFIX,
    BASE_DIGEST,
    BASE_NAME,
    CARD_FILE,
    CONFIG_FILE,
    HUB_INTERFACE_FILE,
    HUB_WEIGHTS_FILE,
    LAYER_TYPES,
    README_FILE,
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    FileDescriptor,
)

MAX_README_BYTES = 1 << 20
MAX_BASE_NAME_LENGTH = 512


def check_files(files: Sequence[FileDescriptor]) -> None:
    """Accepts weights, config and perhaps a README, each once; of AdapterHub's package perhaps an interface.

    Raises:
        InvalidAdapter: another set of files; `field` names the file.
        InvalidReference: a digest is not one.
    """
    accepted = [name for name in LAYER_TYPES if name != CARD_FILE]
    seen = set()
    for file in files:
        name = file.file_name
        if name == CARD_FILE:
            raise InvalidAdapter(name, "is made by the registry; do not send it")
        if name not in accepted:
            raise InvalidAdapter(shown_text(name), f"is not a file of an adapter; expected {', '.join(accepted)}")
        if name in seen:
            raise InvalidAdapter(name, "is named twice")
        seen.add(name)
        digest_hex(file.digest)
        if name == README_FILE and file.size_bytes > MAX_README_BYTES:
            raise InvalidAdapter(name, f"has {file.size_bytes} bytes; expected at most {MAX_README_BYTES}")
    if HUB_INTERFACE_FILE in seen and HUB_WEIGHTS_FILE not in seen:
        raise InvalidAdapter(HUB_INTERFACE_FILE, f"belongs to {HUB_WEIGHTS_FILE}, which is missing")
    if seen >= WEIGHTS_FILES:
        raise InvalidAdapter(WEIGHTS_FILE, f"expected one of {' and '.join(sorted(WEIGHTS_FILES))}, found both")
    for name, one_of in ((WEIGHTS_FILE, WEIGHTS_FILES), (CONFIG_FILE, {CONFIG_FILE})):
        if not seen & one_of:
            raise InvalidAdapter(name, "is missing")


def check_annotations(annotations: Mapping[str, str], base: BaseShape) -> None:
    """Accepts printable annotations below 4 KiB in all; of our own keys only the base's.

    Raises:
        InvalidAdapter: one is not; `field` names it.
        IncompatibleAdapter: the adapter was published for another base model.
    """
    check_printable(annotations, InvalidAdapter)
    for key in annotations:
        if key.startswith(ANNOTATION_PREFIX) and key not in (BASE_DIGEST, BASE_NAME):
            problem = f"keys that begin with {ANNOTATION_PREFIX} are made by the registry"
            raise InvalidAdapter(annotation_field(key), problem)
    _check_base(annotations, base)


def base_model_name(annotations: Mapping[str, str], *, configured: str, base: BaseShape) -> str:
    """What the manifest calls the base model: the publisher's word, else the adapter's config's, else the server's.

    Raises:
        InvalidAdapter: it is too long or not printable.
    """
    name = annotations.get(BASE_NAME) or configured or base.name
    if len(name) > MAX_BASE_NAME_LENGTH or not name.isprintable():
        problem = f"expected at most {MAX_BASE_NAME_LENGTH} printable characters, not '{shown_text(name)}'"
        raise InvalidAdapter("base_model_name_or_path", problem)
    return name


def _check_base(annotations: Mapping[str, str], base: BaseShape) -> None:
    wanted = annotations.get(BASE_DIGEST)
    if wanted is None:
        return
    field = annotation_field(BASE_DIGEST)
    if not is_digest(wanted):
        raise InvalidAdapter(field, f"{shown_text(wanted)}: expected sha256: and 64 lower-case hex digits")
    if wanted != base.digest:
        raise IncompatibleAdapter(
            field, f"the adapter is for {wanted}; the base model here, {base.name}, is {base.digest}"
        )
