"""Evaluation reports about adapters: JSON objects, kept as OCI referrers. Does no I/O."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hotshoe.clients.registry_messages import attach_request
from hotshoe.protos.v1 import registry_pb2 as registry

EVALUATION_TYPE = "application/vnd.hotshoe.eval.v1+json"  # as hotshoe.registry.referrer has it
EVALUATION_FILE = "evaluation.json"
SUMMARY = "dev.hotshoe.evaluation.summary"
_MAX_FIGURES = 8
_MAX_NAME_LENGTH = 60


def report_request(
    reference: str, report: Mapping[str, Any] | bytes, *, file_name: str
) -> registry.AttachReferrerRequest:
    """The message that keeps a report about an adapter; bytes are kept as they are.

    Raises ValueError: it is no JSON object.
    """
    document = report if isinstance(report, bytes) else json.dumps(report, sort_keys=True, indent=1).encode()
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file_name}: expected JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file_name}: expected a JSON object, found {type(content).__name__}")
    summary = ", ".join(f"{name} {value:.4g}" for name, value in _figures(content))
    annotations = {SUMMARY: summary} if summary else {}
    return attach_request(
        reference, document, artifact_type=EVALUATION_TYPE, file_name=file_name, annotations=annotations
    )


def evaluations(adapter: registry.Adapter) -> list[registry.Referrer]:
    """The latest report of each file's name, the latest first."""
    latest: dict[str, registry.Referrer] = {}
    for referrer in adapter.referrers:
        if referrer.artifact_type == EVALUATION_TYPE:
            latest.setdefault(referrer.document.file_name, referrer)
    return list(latest.values())


def _figures(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The first few figures of a report: of lm-evaluation-harness's `results`, of `metrics`, or at its top."""
    found = []
    results, metrics = content.get("results"), content.get("metrics")
    if isinstance(results, dict):
        for task, values in results.items():
            found += [(f"{task} {name}", value) for name, value in _numbers(values)]
    else:
        found += _numbers(metrics if isinstance(metrics, dict) else content)
    return found[:_MAX_FIGURES]


def _numbers(values: Any) -> Iterator[tuple[str, float]]:
    for name, value in values.items() if isinstance(values, dict) else ():
        name = name.removesuffix(",none")  # the harness's word for "no filter"
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if is_number and "stderr" not in name and name.isprintable() and len(name) <= _MAX_NAME_LENGTH:
            yield name, float(value)
