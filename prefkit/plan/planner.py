"""One model and one data set under any setting: layout, memory, what the body keeps."""

from typing import Any

from prefkit.data.batch.collators import Layout
from prefkit.plan.costs.body import Body, BodyRun, trace_body
from prefkit.plan.costs.memory import Memory, memory_of
from prefkit.plan.inputs.lengths import Lengths
from prefkit.plan.inputs.loads import Load, batches
from prefkit.plan.inputs.meta_model import Lora
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape, read_shape


class Planner:
    """Plans settings of one model and one data set; what was traced once is kept.

    Args:
        name: of the model, for tables.
        config: of `prefkit.plan.inputs.shape.load_config`.
        lengths: of the data.
    """

    def __init__(self, name: str, config: Any, lengths: Lengths) -> None:
        self.name, self.config, self.lengths = name, config, lengths
        self._shapes: dict[str, ModelShape] = {}
        self._bodies: dict[str, tuple[int, Body]] = {}
        self._loads: dict[tuple[Any, ...], tuple[Load, Load]] = {}

    def shape(self, lora: Lora | None) -> ModelShape:
        """The model's numbers, with or without an adapter."""
        key = repr(lora)
        if key not in self._shapes:
            self._shapes[key] = read_shape(self.name, self.config, lora)
        return self._shapes[key]

    def layout(self, setting: Setting) -> Layout:
        """The layout that a run will have, as far as the config decides it."""
        if self.why_padded(setting) is not None:
            return "padded"
        return "tree" if setting.layout == "auto" else setting.layout

    def why_padded(self, setting: Setting) -> str | None:
        """Why a run will have padded rows, in words, or None."""
        limit = self.shape(None).row_limit
        if limit is not None and self.lengths.longest > limit:
            return (
                f"the model rotates positions by the length of the whole row from {limit} tokens "
                f"on, and the longest sequence has {self.lengths.longest}"
            )
        if setting.dropout:
            return "disable_dropout is off, and attention without padding has no dropout"
        return None

    def loads(self, setting: Setting) -> tuple[Load, Load]:
        """The heaviest and the mean batch of a device (see `batches`)."""
        s, layout = setting, self.layout(setting)
        key = layout, s.tokens_per_batch, s.group_by, s.pairs, s.multiple, s.seed
        if key not in self._loads:
            self._loads[key] = batches(self.lengths, setting, layout)
        return self._loads[key]

    def memory(self, setting: Setting) -> Memory:
        """The memory of one process at the heaviest batch."""
        load, _ = self.loads(setting)
        shape = self.shape(setting.lora)
        return memory_of(shape, setting, load, self.body(setting, load))

    def peak(self, setting: Setting) -> float:
        """Bytes of one process at its heaviest batch, the allocator's assumed slack included."""
        memory = self.memory(setting)
        return memory.peak.total + memory.slack

    def body(self, setting: Setting, load: Load) -> Body:
        """What the body keeps of a batch."""
        run = BodyRun(
            dtype=setting.computed,
            autocast=setting.mixed,
            checkpointing=setting.checkpointing,
            attention=setting.attention,
            lora=setting.lora,
            gathered=setting.sharded and setting.mixed is not None,
            rows=round(load.rows),
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
