"""From the registry to a checked adapter in canonical form, in host memory."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseWeights, LinearId, NormId
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.validation import AdapterLimits, Pause, go_on
from hotshoe.server.adapters.adapter_key import digest_of, task_of
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.adapters.resident import AdapterSource, LoadStage
from hotshoe.server.config import ResidencyConfig

_log = logging.getLogger(__name__)


class AdapterReader:
    """Reads adapters for one base. Any thread; holds nothing."""

    def __init__(
        self,
        source: AdapterSource,
        base: BaseWeights,
        config: ResidencyConfig,
        *,
        cache: LoweredCache | None = None,
    ) -> None:
        """`cache` keeps what took the base's weights to compute."""
        self._source = source
        self._cache = cache
        self._base = base
        self._config = config
        self._limits = AdapterLimits(max_rank=config.max_rank, max_bytes=config.max_adapter_bytes)

    def read(
        self,
        key: str,
        on_stage: Callable[[LoadStage, AdapterRecord], None],
        *,
        pause: Pause = go_on,
        threads: int = 1,
    ) -> tuple[AdapterRecord, LoweredAdapter, dict[str, float]]:
        """Resolves, verifies and lowers an adapter, or a task of it, by `adapter_key`.

        `on_stage` hears of each stage as it begins; `pause` is called between tensors, `threads` read its file.

        Returns:
            Its record, its canonical form, and the seconds of each stage.

        Raises:
            RegistryError: it is not there, damaged, or cannot be served exactly on this base.
        """
        digest = digest_of(key)
        record = self._source.adapter_record(digest)
        self._check_base(record)
        if record.size_bytes > self._config.max_adapter_bytes:
            raise InvalidAdapter(
                "size", f"{record.size_bytes} bytes, expected at most {self._config.max_adapter_bytes}"
            )
        on_stage(LoadStage.VERIFYING, record)
        started = time.perf_counter()
        files = self._source.adapter_files(digest)
        verified = time.perf_counter()
        on_stage(LoadStage.LOADING, record)
        lowered = self._lower(key, record, files, pause, threads)
        lowered_at = time.perf_counter()
        return record, lowered, {"verify": verified - started, "lower": lowered_at - verified}

    def _lower(
        self, key: str, record: AdapterRecord, files: Mapping[str, Path], pause: Pause, threads: int
    ) -> LoweredAdapter:
        base_digest = self._base.shape.digest
        if self._cache is not None:
            kept = self._cache.find(key, base_digest, pause=pause)
            if kept is not None and kept.rank <= self._limits.max_rank:
                return kept
        base = _WatchedWeights(self._base)
        rank = record.approximate_rank
        lowered = lower_adapter(
            files, base, self._limits, approximate_rank=rank, task=task_of(key), pause=pause, threads=threads
        )
        pause()
        check_finite(lowered)
        if self._cache is not None and (base.was_read or rank):
            self._cache.add(key, base_digest, lowered)
        return lowered

    def _check_base(self, record: AdapterRecord) -> None:
        base = self._base.shape
        if record.base_digest == base.digest:
            return
        if not self._config.allow_other_base:
            raise IncompatibleAdapter("base", f"published for {record.base_digest}, this server has {base.digest}")
        _log.warning(
            "adapter %s was published for base %s, served on %s", record.digest, record.base_digest, base.digest
        )


class _WatchedWeights:
    """The base's weights, and whether any linear's was asked for."""

    def __init__(self, base: BaseWeights) -> None:
        self.shape = base.shape
        self.was_read = False
        self._base = base

    def weight(self, linear: LinearId) -> torch.Tensor:
        self.was_read = True
        return self._base.weight(linear)

    def bias(self, linear: LinearId) -> torch.Tensor | None:
        return self._base.bias(linear)

    def norm(self, norm: NormId) -> torch.Tensor:
        return self._base.norm(norm)

    def embedding(self) -> torch.Tensor:
        return self._base.embedding()

    def head(self) -> torch.Tensor:
        return self._base.head()


def check_finite(adapter: LoweredAdapter) -> None:
    """Raises InvalidAdapter unless every number is finite: scales can overflow what the files hold."""
    tensors = list(adapter.tensors())
    norms = torch._foreach_norm(tensors) if tensors else []  # cheap; a sum of squares may overflow where no number does
    doubtful = [tensor for tensor, norm in zip(tensors, norms, strict=True) if not math.isfinite(float(norm))]
    are_finite = all(bool(tensor.isfinite().all()) for tensor in doubtful)
    if not (are_finite and all(matrix.is_finite for matrix in adapter.stored())):
        raise InvalidAdapter("tensors", "expected finite numbers, found NaN or infinity after lowering")
