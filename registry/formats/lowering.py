"""From an adapter's files to its canonical form, whatever its kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.adapterhub import is_adapterhub, method_of, one_table
from hotshoe.registry.formats.base import BaseShape, BaseWeights
from hotshoe.registry.formats.dense import ApproximatePlan
from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS, DENSE_KINDS, REFUSED_KINDS
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.peft_config import NULL, TEXT, Config, either
from hotshoe.registry.formats.plan import TaskPlans, Tensors
from hotshoe.registry.formats.replaced import ReplacingPlan
from hotshoe.registry.formats.saved_modules import take_saved_modules
from hotshoe.registry.formats.tensor_reader import TensorReader
from hotshoe.registry.strict_json import read_config, shown
from hotshoe.registry.validation import AdapterLimits, Pause, TensorFile, go_on

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_WEIGHTS_FILE, HUB_INTERFACE_FILE = "adapter.safetensors", "adapter_interface.json"  # of AdapterHub's package
_PICKLES = {WEIGHTS_FILE: "adapter_model.bin", HUB_WEIGHTS_FILE: "pytorch_adapter.bin"}
DEFAULT_LIMITS = AdapterLimits()


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What the registry says about an adapter."""

    kind: str  # PEFT's peft_type, or one of ADAPTERHUB_KINDS
    rank: int  # the largest of any linear, 0 if it has no low-rank part
    target_modules: tuple[str, ...]  # names of the decoder linears that it changes, in base order
    base_model: str  # base_model_name_or_path of the config, "" if it does not say
    dtype: str  # of its tensors; "BF16+F32" if they differ
    num_parameters: int
    num_tensors: int
    virtual_tokens: int  # positions that it puts before the prompt
    num_tasks: int = 0  # of which a request names one; 0 if it is the same for every request


def inspect_adapter(
    files: Mapping[str, Path],
    shape: BaseShape,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
) -> AdapterSummary:
    """Checks everything about an adapter short of lowering it: every field, every tensor, every value.

    Args:
        files: by name, those that PEFT or AdapterHub's package writes; others are not read.
        approximate_rank: the rank to which updates of full rank are cut; 0 refuses them.

    Raises:
        InvalidAdapter: it cannot be served exactly, or as nearly as was asked; the error names the first field or
            tensor that is wrong.
        IncompatibleAdapter: it can, but not on that base.
    """
    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits) as tensor_file:
        entries = tensor_file.entries.values()
        plans = checked.plans(tensor_file, shape, limits)
        for entry in sorted(entries, key=lambda entry: entry.offset):
            tensor_file.check_finite(entry)
    plan = plans.of(0)
    return AdapterSummary(
        kind=checked.kind,
        rank=plan.rank,
        target_modules=tuple(dict.fromkeys(linear.target for linear in plan.linears)),
        base_model=checked.base_model,
        dtype="+".join(sorted({entry.dtype for entry in entries})),
        num_parameters=sum(entry.num_elements for entry in entries),
        num_tensors=len(entries),
        virtual_tokens=plan.virtual_tokens,
        num_tasks=plans.count,
    )


def lower_adapter(
    files: Mapping[str, Path],
    base: BaseWeights,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
    task: int | None = None,
    pause: Pause = go_on,
    threads: int = 1,
) -> LoweredAdapter:
    """Checks an adapter as `inspect_adapter` does, and gives its canonical form on that base.

    Args:
        approximate_rank: as `inspect_adapter` has it.
        task: which of its tasks, each of which has a form of its own; None for an adapter that has none.
        pause: called between tensors, so that the caller may spread the work over time.
        threads: that read the file, this one among them; only this one calls `pause`.

    Returns:
        Float32 tensors on the CPU; factors that nothing is computed of as the file has them.

    Raises:
        InvalidAdapter, IncompatibleAdapter: as `inspect_adapter`.
    """
    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits, pause) as tensor_file:
        plans = checked.plans(tensor_file, base.shape, limits, pause)
        _check_task(task, plans.count)
        reader = TensorReader(tensor_file, pause, threads=threads)
        lowered = plans.of(task or 0).lower(reader, base)
    assert not reader.unread, f"{checked.kind} claimed tensors that it did not lower: {sorted(reader.unread)}"
    return lowered


def tasks_of(
    files: Mapping[str, Path],
    shape: BaseShape,
    limits: AdapterLimits = DEFAULT_LIMITS,
    *,
    approximate_rank: int = 0,
    pause: Pause = go_on,
) -> Sequence[int | None]:
    """What `lower_adapter` may be told as an adapter's task: each that it has, or None. Raises as that does."""
    checked = _check_config(files, approximate_rank)
    with checked.open_weights(files, limits, pause) as tensor_file:
        return range(checked.plans(tensor_file, shape, limits, pause).count) or (None,)


@dataclass(frozen=True, slots=True)
class _CheckedConfig:
    """A config whose kind is known, its fields still to be taken by that kind."""

    kind: str
    base_model: str
    fields: Config
    approximate_rank: int  # 0 for a kind that is served exactly

    def open_weights(self, files: Mapping[str, Path], limits: AdapterLimits, pause: Pause = go_on) -> TensorFile:
        name = HUB_WEIGHTS_FILE if self.kind in ADAPTERHUB_KINDS else WEIGHTS_FILE
        return TensorFile.open(_file(files, name), name=name, max_bytes=limits.max_bytes, pause=pause)

    def plans(
        self, tensor_file: TensorFile, shape: BaseShape, limits: AdapterLimits, pause: Pause = go_on
    ) -> TaskPlans:
        tensors = Tensors(
            tensor_file.entries,
            shape,
            pause,
            check_integers=lambda entry, below: tensor_file.read_integers(entry, below=below),
        )
        plans = self._plans(tensors, shape)
        tensors.close()
        if (rank := plans.of(0).rank) > limits.max_rank:
            field = "approximate_rank" if self.approximate_rank else "r"
            raise InvalidAdapter(field, f"found rank {rank}, expected at most {limits.max_rank}")
        return plans

    def _plans(self, tensors: Tensors, shape: BaseShape) -> TaskPlans:
        kind = ADAPTER_KINDS.get(self.kind) or ADAPTERHUB_KINDS.get(self.kind)
        wraps_modules = kind is None or kind.wraps_modules
        saved = take_saved_modules(self.fields, tensors, shape) if wraps_modules else None
        if kind is not None:
            found = kind.plan(self.fields, tensors, shape)
        else:
            dense = DENSE_KINDS[self.kind].plan(self.fields, tensors, shape)
            found = ApproximatePlan(dense, self.approximate_rank, shape)
        plans = found if isinstance(found, TaskPlans) else TaskPlans(0, lambda task: found)
        if saved is None:
            return plans
        return TaskPlans(plans.count, lambda task: ReplacingPlan(self.kind, saved, plans.of(task)))


def kind_of(fields: Mapping[str, object]) -> object:
    """The kind that a config says; what stands there if it is none."""
    return method_of(fields) if is_adapterhub(fields) else fields.get("peft_type")


def _check_config(files: Mapping[str, Path], approximate_rank: int) -> _CheckedConfig:
    fields = read_config(_file(files, CONFIG_FILE))
    kind = kind_of(fields)
    if is_adapterhub(fields):
        interface = files.get(HUB_INTERFACE_FILE)
        places = None if interface is None else read_config(interface, name=HUB_INTERFACE_FILE)
        fields = one_table(fields, places)
        base_field, served = "model_name", ADAPTERHUB_KINDS
    else:
        base_field, served = "base_model_name_or_path", ADAPTER_KINDS
    if not isinstance(kind, str) or (kind not in served and kind not in DENSE_KINDS):
        why = f": {REFUSED_KINDS[kind]}" if isinstance(kind, str) and kind in REFUSED_KINDS else ""
        raise InvalidAdapter("peft_type", f"expected {' or '.join(ADAPTER_KINDS)}, found {shown(kind)}{why}")
    if kind in DENSE_KINDS and approximate_rank < 1:
        raise InvalidAdapter(
            "peft_type",
            f"{kind}'s update is of full rank, and has no exact form that a batch can share; give approximate_rank, "
            "hotshoe publish --approximate-rank R, to serve the nearest of rank R",
        )
    if kind in served and approximate_rank:
        raise InvalidAdapter("approximate_rank", f"expected 0, found {approximate_rank}: {kind} is served exactly")
    config = Config(fields)
    base_model = config.take(base_field, either(TEXT, NULL), default=None)
    return _CheckedConfig(kind, base_model or "", config, approximate_rank)


def _check_task(task: int | None, num_tasks: int) -> None:
    if num_tasks == 0 and task is not None:
        raise InvalidAdapter("task", f"found {task}, expected none: it has no tasks")
    if num_tasks and (task is None or task >= num_tasks):
        found = "none" if task is None else task
        raise InvalidAdapter(
            "task",
            f"found {found}, expected one from 0 to {num_tasks - 1}: each of its tasks is an adapter of its own, and "
            "only requests, loads and merges name one",
        )


def _file(files: Mapping[str, Path], name: str) -> Path:
    path = files.get(name)
    if path is None or not path.is_file():
        pickle = _PICKLES.get(name)
        raise InvalidAdapter(name, f"missing; {pickle} is a pickle and is not read" if pickle in files else "missing")
    return path
