"""Bytes of one process, component by component, at the moment of a step that takes the most.

Everything here is arithmetic on the model's sizes, on what its body keeps
(`prefkit.plan.costs.body`) and on what the head holds (`prefkit.plan.costs.head`). A step has up to
seven moments that can be the peak; each is a list of components, and the peak is the moment with
the largest sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prefkit.plan.costs.body import Body
from prefkit.plan.costs.head import HeadBytes, head_bytes, reading_bytes
from prefkit.plan.inputs.loads import Load
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape

# Assumed, not measured on a GPU: what the caching allocator holds beyond the live tensors.
ALLOCATOR = 0.05


@dataclass(frozen=True)
class Moment:
    """A moment of the step: its name and its components in bytes."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """The memory of one process.

    Attributes:
        moments: of a step, in order.
        head: the fused head's part.
        on_host: bytes of the host's memory a process, where something is offloaded.
    """

    moments: tuple[Moment, ...]
    head: HeadBytes
    on_host: float

    @property
    def peak(self) -> Moment:
        """The moment that takes the most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def slack(self) -> float:
        """Assumed share of the allocator, in bytes."""
        return ALLOCATOR * self.peak.total


def memory_of(shape: ModelShape, setting: Setting, load: Load, body: Body) -> Memory:
    """The memory of a step on one process.

    Args:
        shape: of the model.
        setting: of the run.
        load: the heaviest batch of a row; sequence parallelism is applied here.
        body: of `trace_body`, for the tokens of one process.
    """
    tokens, scored = load.worst_piece(setting.sequence_parallel)
    head = head_bytes(shape, setting, scored, load.pairs, load.by_token)
    states = states_of(shape, setting)
    gathered = _Gathered(shape, setting)
    grads = states.pop("gradients")
    again = setting.accumulation > 1 or setting.sequence_parallel > 1
    waiting = {"gradients": grads} if again else {}
    width = tokens * shape.hidden * (setting.mixed or setting.computed).itemsize
    moments = []
    if setting.runs_reference:
        parts = {**states, **waiting, "reference forward": body.reading}
        parts["reference head"] = reading_bytes(shape, setting, scored)
        moments.append(Moment("reference", parts | gathered.forward()))
    kept = _kept(setting, body, tokens, shape)
    at_head = {**states, **waiting, **kept, **_cast_weights(setting, body, kept)}
    parts = at_head | {"head": head.forward} | gathered.head(backward=False)
    moments.append(Moment("head, forward", parts))
    parts = {**states, **waiting, **kept, "head": head.backward + width}
    moments.append(Moment("head, backward", parts | gathered.head(backward=True)))
    known = grads if waiting else 0.0 if setting.sharded else _head_grad(shape, setting)
    recomputed = max(0.0, body.backward - sum(kept.values()))
    parts = {**states, "gradients": known, **kept, "one layer's backward": recomputed}
    moments.append(Moment("first layer backward", parts | gathered.backward(first=True)))
    parts = {**states, "gradients": grads, "one layer's backward": body.last}
    moments.append(Moment("last layer backward", parts | gathered.backward(first=False)))
    if embedding := _embedding_grad(shape, setting):
        parts = {**states, "gradients": grads, "hidden states": width, **embedding}
        moments.append(Moment("embedding, backward", parts | gathered.embedding()))
    # torch's unfused optimisers work on all tensors of a GPU at once, but not on shards.
    at_once = not (setting.sharded or setting.on_cpu or "fused" in setting.optimizer)
    step = grads if at_once else 0.0
    parts = {**states, "gradients": grads, "optimiser's temporaries": step}
    moments.append(Moment("optimiser", parts))
    on_host = body.layer * shape.layers if setting.offload else 0.0
    return Memory(tuple(moments), head, on_host)


def states_of(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """Parameters, gradients, optimiser states, reference: a process's share."""
    share = setting.gpus if setting.sharded else 1
    weight = setting.weights.itemsize
    base, trained = shape.total, setting.trained.itemsize
    if setting.lora is None:
        trainable, parameters = base, base * trained
    else:
        trainable, parameters = shape.adapter, base * weight + shape.adapter * trained
    states = {
        "parameters": parameters / share,
        "gradients": trainable * trained / share,
        "optimiser states": trainable * setting.states / share,
    }
    if setting.sharding == "ddp":
        states["buckets of gradients (DDP)"] = float(trainable * trained)
    if setting.keeps_reference:
        states["reference"] = base * weight / share
    elif setting.cached_hidden and setting.own_reference:
        states["reference's head"] = float(shape.vocab * shape.hidden * weight)
    if setting.offload_params:
        for name in ("parameters", "optimiser states", "reference"):
            states.pop(name, None)
        states["gradients"] = 0.0
    return states


def _kept(setting: Setting, body: Body, tokens: float, shape: ModelShape) -> dict[str, float]:
    """What waits for the backward."""
    if not setting.checkpointing:
        return {"activations": body.held}
    checkpoints = 0.0 if setting.offload else body.layer * (shape.layers - 1)
    rest = max(0.0, body.held - checkpoints)
    return {"checkpointed activations": checkpoints, "hidden states": rest}


def _cast_weights(setting: Setting, body: Body, kept: Mapping[str, float]) -> dict[str, float]:
    """Autocast's copies of the weights, held until the forward ends."""
    copies = max(0.0, body.at_head - body.held)
    return {"autocast's copies of the weights": copies} if copies else {}


def _head_grad(shape: ModelShape, setting: Setting) -> float:
    return 0.0 if setting.lora else shape.vocab * shape.hidden * setting.trained.itemsize


def _embedding_grad(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """The input embedding's gradient, where there is one to add it to."""
    again = shape.tied or setting.accumulation > 1 or setting.sharded
    if setting.lora is not None or not again:
        return {}
    size = (setting.computed if setting.sharded else setting.trained).itemsize
    return {"embedding's gradient": float(shape.embedding * size)}


class _Gathered:
    """What FSDP2 (or ZeRO-3) gathers for a while, and reduces from.

    Units as accelerate makes them: each layer, the input embedding, final norm with head. A layer's
    successor is gathered while it runs. Gradients wait, whole, in fp32 for their reduction until
    the next unit's are ready. The policy's head stays gathered from its forward to its backward, a
    reference's for as long as the loss reads it.
    """

    def __init__(self, shape: ModelShape, setting: Setting) -> None:
        self.on = setting.sharded
        size = setting.computed.itemsize
        trains = setting.lora is None
        self.layer = (shape.layer + shape.adapter_layer) * size
        self.tail = (shape.vocab * shape.hidden) * size
        self.layer_grad = (shape.layer if trains else shape.adapter_layer) * size
        self.tail_grad = self.tail if trains else 0
        self.front = 0 if shape.tied else shape.embedding * size
        # prefkit reduces in fp32; whole gradients wait for it beside those of the next unit.
        self.wider = 1.0 if setting.mixed is None else 4 / size
        self.reference = self.tail if setting.keeps_reference and setting.needs_kl else 0

    def forward(self) -> dict[str, float]:
        """In a forward: a layer, and the next one on its way."""
        if not self.on:
            return {}
        return {"gathered layers": 2.0 * self.layer} | self._held()

    def head(self, backward: bool) -> dict[str, float]:
        """Around the head."""
        if not self.on:
            return {}
        parts = {"gathered head": float(self.tail)} | self._held()
        if backward:
            parts["gathered layers"] = float(self.layer)  # the last one, ahead of its backward
        return parts

    def backward(self, first: bool) -> dict[str, float]:
        """In a layer's backward; `first` just after the head's."""
        if not self.on:
            return {}
        before = self.tail_grad if first else self.layer_grad
        ahead = self.layer if first else max(self.layer, self.front)  # the embedding comes last
        return {
            "gathered layers": float(self.layer + ahead),
            "gradients of a layer": float(self.layer_grad),
            "gradients being reduced": before * self.wider,
        } | self._held()

    def embedding(self) -> dict[str, float]:
        """In the input embedding's backward."""
        if not self.on:
            return {}
        parts = {"gathered layers": float(self.front)}
        parts["gradients being reduced"] = max(self.layer_grad, self.front) * self.wider
        return parts | self._held()

    def _held(self) -> dict[str, float]:
        return {"reference's head": float(self.reference)} if self.reference else {}
