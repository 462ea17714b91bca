"""What adapters have to do with each other, as the wire has it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.family import family_of
from hotshoe.registry.formats.lowering import CONFIG_FILE
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.recipes.comparison import Comparison
from hotshoe.registry.registry import Registry
from hotshoe.registry.strict_json import read_config
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.registry_messages import referrer_message


def lineage_message(registry: Registry, reference: str) -> registry_pb2.GetLineageResponse:
    """The family of an adapter, each with the documents about it. Raises what `Registry.resolve` does."""
    family = family_of(registry, reference)

    def described(record: AdapterRecord) -> registry_pb2.Adapter:
        message = adapter_message(record)
        message.referrers.extend(map(referrer_message, registry.referrers(record.digest)))
        return message

    return registry_pb2.GetLineageResponse(
        adapter=described(family.adapter),
        ancestors=map(described, family.ancestors),
        missing_digests=family.missing,
        children=map(described, family.children),
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
