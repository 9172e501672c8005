"""`make_plan`: model, lengths, memory, work, advice and command, put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.plan.advice import Advice, advise, read_less
from prefkit.plan.command import command_of, machines_of
from prefkit.plan.costs.memory import Memory, states_of
from prefkit.plan.costs.work import Work, work_of
from prefkit.plan.inputs.lengths import Lengths
from prefkit.plan.inputs.loads import Load
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape
from prefkit.plan.planner import Planner


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        shape, setting, lengths: what was planned.
        layout: of the collator, as far as it is known without the weights.
        heaviest, mean: batches of a device.
        memory: of one process at its heaviest batch.
        work: of an optimiser step of mean batches.
        room: bytes of one GPU.
        advice: what to change, where it does not fit or rows of whole questions read fewer tokens.
        command: the command line that runs it.
        notes: what to know, one line each.
        supposed: nothing says that there is a GPU: `room` is that of a usual one.
    """

    shape: ModelShape
    setting: Setting
    lengths: Lengths
    layout: Layout
    heaviest: Load
    mean: Load
    memory: Memory
    work: Work
    room: float
    advice: list[Advice]
    command: str
    notes: list[str] = field(default_factory=list)
    supposed: bool = False

    @property
    def need(self) -> float:
        """Bytes of one process, the allocator's assumed slack included."""
        return self.memory.peak.total + self.memory.slack

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is."""
        return self.need <= self.room

    @property
    def steps(self) -> float | None:
        """Optimiser steps an epoch, where the size of the data is known."""
        return None if self.lengths.total is None else self.lengths.total / self.work.pairs


def make_plan(
    planner: Planner,
    setting: Setting,
    room: float,
    *,
    words: Sequence[str] = (),
    launcher: str | None = None,
    choose_sharding: bool = False,
    supposed: bool = False,
) -> Plan:
    """The plan of a run.

    Args:
        planner: of the model and the data.
        setting: of `read_setting`.
        room: bytes of one GPU (or of the machine, on a CPU).
        words: arguments of the command line, for the command at the end.
        launcher: accelerate config file, for the same.
        choose_sharding: nothing says how several processes share the model: plan FSDP2 where
            replicas do not fit.
        supposed: nothing says that there is a GPU, and `room` is that of a usual one.

    Raises:
        ConfigError: the longest sequence is longer than the model knows positions; no pair fits;
            the processes cannot be spread over machines, or cannot share padded rows.
        ModelError: layout is "tree" or "shared" where a run has padded rows; see also `trace_body`.
    """
    _check(setting, planner)
    notes = _notes(setting, planner, supposed)
    if choose_sharding and not _replica_fits(setting, planner, room):
        setting = replace(setting, sharding="fsdp2", precomputed=False, cached_hidden=False)
        notes.append("A replica a process does not fit, so this is a plan with FSDP2.")
    shape, lengths, layout = planner.shape(setting.lora), planner.lengths, planner.layout(setting)
    heaviest, mean = planner.loads(setting)
    plan = Plan(
        shape=shape,
        setting=setting,
        lengths=lengths,
        layout=layout,
        heaviest=heaviest,
        mean=mean,
        memory=planner.memory(setting),
        work=work_of(shape, setting, mean),
        room=room,
        advice=read_less(setting, lengths, layout, planner.loads, planner.peak, room),
        command=command_of(setting, words, launcher),
        notes=notes,
        supposed=supposed,
    )
    if plan.fits:
        return plan
    heads = 1 if layout == "padded" else shape.heads  # padded rows are shared by no processes
    saving = advise(setting, lengths, layout, planner.peak, room, heads)
    return replace(plan, advice=plan.advice + saving)


def _replica_fits(setting: Setting, planner: Planner, room: float) -> bool:
    """Whether parameters and states of a whole replica fit, where each process has one."""
    if setting.sharding != "ddp":
        return True
    return sum(states_of(planner.shape(setting.lora), setting).values()) <= room


def _check(setting: Setting, planner: Planner) -> None:
    """Refuses processes, lengths and layouts that no run can have."""
    machines_of(setting)
    limit, longest = planner.shape(setting.lora).max_length, planner.lengths.longest
    if limit is not None and longest > limit:
        raise ConfigError(
            f"A sequence of {longest} tokens is longer than the {limit} positions that "
            f"{planner.name} knows. Leave longer rows out (max_length, too_long: skip)."
        )
    _check_padded(setting, planner)


def _check_padded(setting: Setting, planner: Planner) -> None:
    """Refuses what `prefkit train` refuses of padded rows."""
    reason = planner.why_padded(setting)
    if reason is not None and setting.layout in ("tree", "shared"):
        raise ModelError(
            f"layout: {setting.layout} cannot be had: {reason}. Leave layout at auto, which gives "
            "each side a padded row of its own here."
        )
    if reason is not None and setting.sequence_parallel > 1:
        raise ConfigError(
            f"sequence_parallel_size needs rows without padding, and this run has padded ones: "
            f"{reason}. Leave sequence_parallel_size out."
        )


def _notes(setting: Setting, planner: Planner, supposed: bool) -> list[str]:
    notes = []
    if (reason := planner.why_padded(setting)) is not None:
        notes.append(f"Padded rows: {reason}.")
        if setting.dropout:
            notes.append("What dropout keeps for its backward is not counted.")
    elif setting.layout == "auto":
        notes.append(
            "Rows without padding are assumed; `prefkit train` tells if a model cannot read them."
        )
    if setting.sharding == "zero3":
        notes.append("ZeRO-3 is planned with FSDP2's units; its own buffers are left out.")
    if setting.on_cpu:
        notes.append("On a CPU: bytes above the process before the model is loaded.")
    else:
        notes.append("Arithmetic, not measured on a GPU; CUDA's and NCCL's own memory is extra.")
    if supposed:
        notes.append(
            "No GPU is here, so one of usual memory is supposed. Name another with --gpu_memory, "
            "or plan for this machine with --use_cpu true."
        )
    return notes
