"""What adapters have to do with each other, as the wire has it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.family import Family
from hotshoe.registry.formats.kind import CONFIG_FILE
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.recipes.comparison import Comparison
from hotshoe.registry.validation import read_config
from hotshoe.server.services.adapter_messages import adapter_message


def lineage_message(family: Family) -> registry_pb2.GetLineageResponse:
    """All of it."""
    return registry_pb2.GetLineageResponse(
        adapter=adapter_message(family.adapter),
        ancestors=map(adapter_message, family.ancestors),
        missing_digests=family.missing,
        children=map(adapter_message, family.children),
    )


def comparison_message(
    pair: tuple[AdapterRecord, AdapterRecord], files: tuple[Mapping[str, Path], Mapping[str, Path]], found: Comparison
) -> registry_pb2.CompareAdaptersResponse:
    """Two adapters, and what was found between them."""
    return registry_pb2.CompareAdaptersResponse(
        first=adapter_message(pair[0]),
        second=adapter_message(pair[1]),
        fields=_field_differences(*(read_config(of_one[CONFIG_FILE]) for of_one in files)),
        linears=[
            registry_pb2.LinearDifference(
                layer=linear.layer,
                target=linear.target,
                first_norm=one.first**0.5,
                second_norm=one.second**0.5,
                cosine=one.cosine,
                distance=one.distance,
            )
            for linear, one in found.linears.items()
        ],
        cosine=found.whole.cosine,
        distance=found.whole.distance,
        others=found.others,
    )


def _field_differences(
    first: Mapping[str, object], second: Mapping[str, object]
) -> Iterator[registry_pb2.FieldDifference]:
    for name in sorted(first.keys() | second.keys()):
        values = [json.dumps(config[name], sort_keys=True) if name in config else "" for config in (first, second)]
        if values[0] != values[1]:
            yield registry_pb2.FieldDifference(field=name, first=values[0], second=values[1])
