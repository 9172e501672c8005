"""`make_plan`: model, lengths, memory, work, advice and command, put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefkit.errors import ConfigError, ModelError
from prefkit.plan.advice import Advice, advise
from prefkit.plan.flops import Work, work_of
from prefkit.plan.launch_command import command_of, machines_of
from prefkit.plan.lengths import Lengths, Load, batches
from prefkit.plan.memory import Memory, memory_of, states_of
from prefkit.plan.model import Lora, ModelShape, read_shape
from prefkit.plan.setting import Setting
from prefkit.plan.trace import Body, BodyRun, trace_body


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        shape, setting, lengths: what was planned.
        layout: "shared", "separate" or "padded", as far as it can be told before the weights.
        heaviest, mean: batches of a device.
        memory: of one process at its heaviest batch.
        work: of an optimiser step of mean batches.
        room: bytes of one GPU.
        advice: what to change, where it does not fit.
        command: the command line that runs it.
        notes: what to know, one line each.
        supposed: nothing says that there is a GPU: `room` is that of a usual one.
    """

    shape: ModelShape
    setting: Setting
    lengths: Lengths
    layout: str
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


class Planner:
    """Plans settings of one model and one data set; what was traced once is kept.

    Args:
        name: of the model, for tables.
        config: of `prefkit.plan.model.load_config`.
        lengths: of the data.
    """

    def __init__(self, name: str, config: Any, lengths: Lengths) -> None:
        self.name, self.config, self.lengths = name, config, lengths
        self._shapes: dict[str, ModelShape] = {}
        self._bodies: dict[str, tuple[int, Body]] = {}

    def shape(self, lora: Lora | None) -> ModelShape:
        """The model's numbers, with or without an adapter."""
        key = repr(lora)
        if key not in self._shapes:
            self._shapes[key] = read_shape(self.name, self.config, lora)
        return self._shapes[key]

    def layout(self, setting: Setting) -> str:
        """The layout that a run will have, short of what only the weights can tell."""
        if self.why_padded(setting) is not None:
            return "padded"
        return "separate" if setting.layout == "separate" else "shared"

    def why_padded(self, setting: Setting) -> str | None:
        """Why a run will have padded rows, in words, or None."""
        window = self.shape(None).window
        if window is not None and self.lengths.longest > window:
            return (
                f"the model attends within {window} tokens, and the longest sequence has "
                f"{self.lengths.longest}"
            )
        if setting.dropout:
            return "disable_dropout is off, and attention without padding has no dropout"
        return None

    def memory(self, setting: Setting) -> Memory:
        """The memory of one process at the heaviest batch."""
        load, _ = batches(self.lengths, setting, self.layout(setting))
        shape = self.shape(setting.lora)
        return memory_of(shape, setting, load, self.body(setting, load))

    def body(self, setting: Setting, load: Load) -> Body:
        """What the body keeps of a batch."""
        run = BodyRun(
            dtype=setting.computed,
            autocast=setting.mixed,
            checkpointing=setting.checkpointing,
            attention=setting.attention,
            lora=setting.lora,
            gathered=setting.sharded and setting.mixed is not None,
            rows=load.rows,
        )
        length = round(load.length)
        if not load.rows:
            length = round(load.worst_piece(setting.sequence_parallel)[0])
        layers = self.shape(setting.lora).layers
        # Copies of weights and masks are not proportional to the tokens.
        proportional = not load.rows and run.autocast in (None, run.dtype)
        key = repr(run) if proportional else repr((run, length))
        if key not in self._bodies:
            self._bodies[key] = length, trace_body(self.config, run, layers, length)
        traced, body = self._bodies[key]
        if traced != length:
            body = body.scaled(length / traced)
        return body.offloaded(layers) if setting.offload else body


def make_plan(
    name: str,
    config: Any,
    setting: Setting,
    lengths: Lengths,
    room: float,
    *,
    words: Sequence[str] = (),
    launcher: str | None = None,
    choose_sharding: bool = False,
    supposed: bool = False,
) -> Plan:
    """The plan of a run.

    Args:
        name, config: the model, as for `Planner`.
        setting: of `read_setting`.
        lengths: of the data.
        room: bytes of one GPU (or of the machine, on a CPU).
        words: arguments of the command line, for the command at the end.
        launcher: accelerate config file, for the same.
        choose_sharding: nothing says how several processes share the model: plan FSDP2 where
            replicas do not fit.
        supposed: nothing says that there is a GPU, and `room` is that of a usual one.

    Raises:
        ConfigError: the longest sequence is longer than the model knows positions; no pair fits;
            the processes cannot be spread over machines, or cannot share padded rows.
        ModelError: layout is "shared" where a run has padded rows; see also `prefkit.plan.trace`.
    """
    machines_of(setting)
    planner = Planner(name, config, lengths)
    shape = planner.shape(setting.lora)
    if shape.max_length is not None and lengths.longest > shape.max_length:
        raise ConfigError(
            f"A sequence of {lengths.longest} tokens is longer than the {shape.max_length} "
            f"positions that {name} knows. Leave longer rows out (max_length, too_long: skip)."
        )
    _check_padded(setting, planner)
    notes = _notes(setting, planner)
    if supposed:
        notes.append(
            "No GPU is here, so one of usual memory is supposed. Name another with --gpu_memory, "
            "or plan for this machine with --use_cpu true."
        )
    replica = setting.sharding == "ddp"
    if choose_sharding and replica and sum(states_of(shape, setting).values()) > room:
        setting = replace(setting, sharding="fsdp2", precomputed=False, cached_hidden=False)
        notes.append("A replica a process does not fit, so this is a plan with FSDP2.")
    memory = planner.memory(setting)
    layout = planner.layout(setting)
    heaviest, mean = batches(lengths, setting, layout)

    def peak(other: Setting) -> float:
        found = planner.memory(other)
        return found.peak.total + found.slack

    need = memory.peak.total + memory.slack
    return Plan(
        shape=shape,
        setting=setting,
        lengths=lengths,
        layout=layout,
        heaviest=heaviest,
        mean=mean,
        memory=memory,
        work=work_of(shape, setting, mean),
        room=room,
        advice=(
            advise(setting, lengths, peak, room, shape.heads, padded=layout == "padded")
            if need > room
            else []
        ),
        command=command_of(setting, words, launcher),
        notes=notes,
        supposed=supposed,
    )


def _check_padded(setting: Setting, planner: Planner) -> None:
    """Refuses what `prefkit train` refuses of padded rows."""
    reason = planner.why_padded(setting)
    if reason is not None and setting.layout == "shared":
        raise ModelError(
            f"layout: shared cannot be had: {reason}. Leave layout at auto, which gives each side "
            "a padded row of its own here."
        )
    if reason is not None and setting.sequence_parallel > 1:
        raise ConfigError(
            f"sequence_parallel_size needs rows without padding, and this run has padded ones: "
            f"{reason}. Leave sequence_parallel_size out."
        )


def _notes(setting: Setting, planner: Planner) -> list[str]:
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
    return notes
