"""What a server says of its base model and its limits."""

import logging

from hotshoe.protos.v1 import generation_pb2
from hotshoe.registry.formats.kind import ADAPTER_KINDS
from hotshoe.server.config import ServerConfig
from hotshoe.server.engine.kv_capacity import KvCapacity
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.logs import log_event
from hotshoe.server.model.loader import LoadedBase


def model_info(
    base: LoadedBase, config: ServerConfig, capacity: KvCapacity, merged: AdapterUse | None
) -> generation_pb2.GetModelInfoResponse:
    """The base's identity and the server's capacity; `merged` is the adapter in its weights."""
    return generation_pb2.GetModelInfoResponse(
        base_model=base.name,
        base_digest=base.digest,
        quantization=base.quantization,
        device=base.device,
        max_sequence_length=min(base.spec.max_sequence_length, capacity.tokens),
        max_running_requests=config.engine.max_running_requests,
        max_resident_adapters=config.residency.adapter_slots,
        adapter_kinds=sorted(ADAPTER_KINDS),
        eos_token_id=min(base.tokenizer.eos_token_ids, default=0),
        merged=_merged_adapter(base, merged),
        kv_cache_tokens=capacity.tokens,
        kv_cache_bytes=capacity.size_bytes,
    )


def _merged_adapter(base: LoadedBase, merged: AdapterUse | None) -> generation_pb2.MergedAdapter | None:
    report = base.merge
    if report is None or merged is None:
        return None
    log_event(
        logging.INFO,
        "merged",
        name=merged.name,
        digest=merged.digest,
        linears=report.linears,
        bfloat16_keeps=round(report.kept.share, 4),
        nf4_would_keep=round(report.nf4_kept.share, 4),
    )
    return generation_pb2.MergedAdapter(
        name=merged.name,
        digest=merged.digest,
        linears=report.linears,
        kept=report.kept.share,
        error=report.kept.error,
        nf4_kept=report.nf4_kept.share,
        nf4_error=report.nf4_kept.error,
    )
