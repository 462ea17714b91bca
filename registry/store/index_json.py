"""index.json: the tags, adapters and documents of a store, as OCI tools look for them.

A descriptor for each tag and for each adapter without one, then one for each document.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.manifest import (
    ANNOTATION_PREFIX,
    ARTIFACT_TYPE,
    INDEX_TYPE,
    MALFORMED,
    MANIFEST_TYPE,
    canonical_json,
)
from hotshoe.registry.reference import check_name, check_tag
from hotshoe.registry.store.index_rows import IndexEntry, ReferrerRow

_REF_NAME = "org.opencontainers.image.ref.name"
_NAME = ANNOTATION_PREFIX + "name"  # of adapters without a tag
_SUBJECT = "dev.hotshoe.subject"  # of documents
_LOG_ID = "dev.hotshoe.log.id"  # of index.json itself


class IndexListing(NamedTuple):
    """What index.json lists. `log_id` is the entry of tags.log up to which it does; None if it does not say."""

    entries: list[IndexEntry]
    referrers: list[ReferrerRow]
    log_id: int | None


def build_index(entries: Iterable[IndexEntry], referrers: Iterable[ReferrerRow] = (), *, log_id: int = 0) -> bytes:
    """index.json, in the order given: one descriptor a tag, with ref.name "name:tag", then one a referrer.

    Referrers are listed because ordinary tools' garbage collection removes what index.json does not name.
    """
    listed = (canonical_json(_referrer_descriptor(row)).decode() for row in referrers)
    manifests = ",".join((*map(_index_descriptor, entries), *listed))
    head = f'{{"annotations":{{"{_LOG_ID}":"{log_id}"}},"manifests":['
    return f'{head}{manifests}],"mediaType":"{INDEX_TYPE}","schemaVersion":2}}'.encode()


def read_index(document: bytes) -> IndexListing | None:
    """What index.json lists; None if it is torn, or not one that `build_index` made."""
    entries: list[IndexEntry] = []
    referrers: list[ReferrerRow] = []
    try:
        index = json.loads(document)
        for descriptor in index["manifests"]:
            if _SUBJECT in descriptor["annotations"]:
                referrers.append(_referrer_row(descriptor))
            else:
                entries.append(_index_entry(descriptor))
        log_id = index.get("annotations", {}).get(_LOG_ID)
        return IndexListing(entries, referrers, None if log_id is None else int(log_id))
    except (*MALFORMED, InvalidReference):
        return None


def read_log_id(document: bytes) -> int:
    """The `log_id` that `build_index` wrote, from the beginning of what it made; -1 if that is not there."""
    match = re.match(rb'\{"annotations":\{"%s":"(\d+)"\}' % re.escape(_LOG_ID).encode(), document)
    return int(match[1]) if match else -1


def _index_descriptor(entry: IndexEntry) -> str:
    # Canonical JSON by hand, twenty times as fast; nothing in it needs escaping.
    key, value = (_NAME, entry.name) if entry.tag is None else (_REF_NAME, f"{entry.name}:{entry.tag}")
    return (
        f'{{"annotations":{{"{key}":"{value}"}},"artifactType":"{ARTIFACT_TYPE}","digest":"{entry.digest}",'
        f'"mediaType":"{MANIFEST_TYPE}","size":{entry.size_bytes}}}'
    )


def _index_entry(descriptor: Mapping[str, Any]) -> IndexEntry:
    annotations = descriptor["annotations"]
    name, tag = annotations.get(_NAME), None
    if name is None:
        name, _, tag = annotations[_REF_NAME].rpartition(":")
        check_tag(tag)
    return IndexEntry(check_name(name), tag, check_digest(descriptor["digest"]), int(descriptor["size"]))


def _referrer_descriptor(row: ReferrerRow) -> dict[str, Any]:
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": row.artifact_type,
        "digest": row.digest,
        "size": row.size_bytes,
        "annotations": {_SUBJECT: row.subject},
    }


def _referrer_row(descriptor: Mapping[str, Any]) -> ReferrerRow:
    subject, artifact_type = descriptor["annotations"][_SUBJECT], str(descriptor["artifactType"])
    return ReferrerRow(
        check_digest(descriptor["digest"]), check_digest(subject), artifact_type, int(descriptor["size"])
    )
