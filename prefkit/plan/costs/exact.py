"""`prefkit plan --exact`: torch's own memory tracker on a whole step, on tensors without data.

`FSDPMemTracker` (torch.distributed._tools) follows every storage of a training step: forward of the
reference, forward and backward of the policy, step of the optimiser. The model is sharded as
accelerate does it, over a process group that sends nothing (torch's fake backend), so neither a GPU
nor the memory is needed. The optimiser is AdamW (or RMSprop) with foreach=False, whose states are
counted as the shards they are.

The fused head's operators hide their buffers from a tracker, so a stand-in allocates what
`prefkit.plan.costs.head` says, at the same points. That part is this project's arithmetic, not
torch's.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.model.fsdp_units import adapter_off, release, unit_of
from prefkit.model.head.fused import unwrap
from prefkit.plan.costs.exact_model import Parts, import_parts, sharded_model
from prefkit.plan.costs.fake import silent
from prefkit.plan.costs.head import HeadBytes, head_bytes, reading_bytes
from prefkit.plan.inputs.loads import Load
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape


@dataclass(frozen=True)
class Exact:
    """What the tracker found.

    Attributes:
        peak: bytes of one process at the most, the reference's shards and the head included.
        parts: the tracker's components of that moment in its own names, and what was added to it.
        layers: depth that was run.
        extrapolated: whether `peak` is a straight line through two smaller depths.
    """

    peak: float
    parts: dict[str, float]
    layers: int
    extrapolated: bool = False


def exact_memory(
    config: Any,
    shape: ModelShape,
    setting: Setting,
    load: Load,
    depths: tuple[int, ...] = (),
) -> Exact:
    """The tracker's figure for a run under FSDP2.

    Args:
        config: of `prefkit.plan.inputs.shape.load_config`.
        shape, setting, load: as for `prefkit.plan.costs.memory.memory_of`.
        depths: none = the model's own depth (80 layers take a minute or two of one core); two =
            run these depths and continue the straight line through them.

    Raises:
        ConfigError: the run is not one for FSDP2, or this torch lacks the tracker.
    """
    if setting.sharding != "fsdp2":
        raise ConfigError(
            "--exact follows FSDP2. Name an accelerate config with fsdp_version 2 "
            "(--accelerate_config), or set fsdp: true."
        )
    parts = import_parts()
    if not depths:
        return _run(parts, config, shape, setting, load, shape.layers)
    low, high = (_run(parts, config, shape, setting, load, depth) for depth in depths)

    def line(a: float, b: float) -> float:
        return a + (b - a) * (shape.layers - depths[0]) / (depths[1] - depths[0])

    names = dict.fromkeys([*low.parts, *high.parts])
    found = {name: line(low.parts.get(name, 0), high.parts.get(name, 0)) for name in names}
    return Exact(line(low.peak, high.peak), found, shape.layers, True)


@contextlib.contextmanager
def _group(parts: Parts, size: int) -> Iterator[Any]:
    """A mesh of processes that are not there."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if dist.is_initialized():
        raise ConfigError("--exact makes a process group of its own; run it in a process without.")
    before = os.environ.get("LOCAL_RANK")
    dist.init_process_group("fake", store=parts.store(), rank=0, world_size=size)
    try:
        yield init_device_mesh("cpu", (size,))
    finally:
        dist.destroy_process_group()
        if before is None:
            os.environ.pop("LOCAL_RANK", None)


def _run(
    parts: Parts, config: Any, shape: ModelShape, setting: Setting, load: Load, layers: int
) -> Exact:
    tokens, scored = load.worst_piece(setting.sequence_parallel)
    head = head_bytes(shape, setting, scored, load.pairs, load.by_token)
    reading = reading_bytes(shape, setting, scored)
    with _group(parts, setting.gpus) as mesh, silent(), parts.fake_mode():
        policy = sharded_model(parts, config, setting, layers, mesh, trainable=True)
        reference = None
        if setting.keeps_reference:
            reference = sharded_model(parts, config, setting, layers, mesh, trainable=False)
        step = _Step(setting, policy, reference, head, reading)
        optimizer = _optimizer(setting, policy)
        tracker = parts.tracker(policy, optimizer)
        ids = torch.zeros(1, round(tokens), dtype=torch.int64)
        tracker.track_inputs((ids,))
        with tracker:
            step.run(ids)
            optimizer.step()
        (found,) = tracker.get_tracker_snapshot("peak").values()
    added = 0.0
    if reference is not None:
        shard = setting.weights.itemsize / setting.gpus
        added = shard * sum(p.numel() for p in reference.parameters())
    names = {getattr(key, "value", str(key)): float(size) for key, size in found.items()}
    total = names.pop("Total")
    names = {name: size for name, size in names.items() if size}
    return Exact(total + added, names | ({"Reference (added)": added} if added else {}), layers)


def _optimizer(setting: Setting, policy: nn.Module) -> Any:
    """AdamW or RMSprop, with its states, and with gradients of batches before, as in later steps.

    foreach=False: only so are states of shards counted as shards.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    optimizer: Any
    if setting.optimizer == "rmsprop":
        optimizer, names = torch.optim.RMSprop(trained, foreach=False), ("square_avg",)
    else:
        optimizer = torch.optim.AdamW(trained, foreach=False)
    for parameter in trained:
        states = {name: torch.zeros_like(parameter) for name in names}
        step = torch.tensor(0.0)  # a fake tensor that knows its number
        optimizer.state[parameter] = {"step": step, **states}
        if setting.accumulation > 1 or setting.sequence_parallel > 1:
            parameter.grad = torch.zeros_like(parameter)
    return optimizer


class _Step:
    """Reference forward, policy forward and backward, with stand-ins for the heads."""

    def __init__(
        self, setting: Setting, policy: Any, reference: Any, head: HeadBytes, reading: float
    ) -> None:
        self.setting, self.policy, self.reference = setting, policy, reference
        self.head, self.reading = head, reading
        self.kept: list[Tensor] = []
        for model in (policy, reference):
            if model is not None:
                module = unwrap(model).get_output_embeddings()  # type: ignore[operator]
                module.forward = MethodType(self._stand_in, module)

    def run(self, ids: Tensor) -> None:
        """One batch."""
        if self.setting.runs_reference:
            self._read(ids)
        with self._autocast():
            out = self.policy(input_ids=ids, use_cache=False).logits
        out.sum().backward()
        self.kept.clear()

    def _read(self, ids: Tensor) -> None:
        model = self.reference
        off: Any = contextlib.nullcontext()
        if model is None:
            model, off = self.policy, adapter_off(self.policy)
        with off, torch.no_grad(), self._autocast():
            model(input_ids=ids, use_cache=False)
        if self.reference is None:
            return  # the policy's forward gathers it again at once
        unit = None
        if self.setting.needs_kl:
            unit = unit_of(model, unwrap(model).get_output_embeddings())  # type: ignore[operator]
        release(model, unit)

    def _autocast(self) -> Any:
        if self.setting.mixed is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=self.setting.mixed)

    def _stand_in(self, module: nn.Module, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Head.apply(hidden, module.weight, self.head)
        held = _bytes(hidden, self.reading)
        if self.setting.needs_kl:  # the reference's hidden states
            self.kept.append(held)
        return hidden.new_empty((*hidden.shape[:-1], 0))


def _bytes(like: Tensor, size: float) -> Tensor:
    return torch.empty(max(0, round(size)), dtype=torch.uint8, device=like.device)


class _Head(torch.autograd.Function):
    """Allocates what the fused head holds, and gives gradients of the right size."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, head: HeadBytes) -> Tensor:
        own = _bytes(hidden, head.forward - head.held - head.reference)
        ctx.held = _bytes(hidden, head.held - (head.reference if head.d_weight == 0 else 0))
        del own
        ctx.head, ctx.sizes = head, (hidden.shape, hidden.dtype, weight.shape, weight.dtype)
        return hidden.new_zeros((*hidden.shape[:2], 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        head: HeadBytes = ctx.head
        shape, dtype, weight, kind = ctx.sizes
        d_weight = grad.new_empty(weight, dtype=kind) if ctx.needs_input_grad[1] else None
        extra = _bytes(grad, head.backward - head.held - (head.grad if d_weight is not None else 0))
        d_hidden = grad.new_empty(shape, dtype=dtype)
        del extra
        ctx.held = None
        return d_hidden, d_weight, None
