"""What a body keeps and needs while it runs, found by running it on tensors without data.

`torch`'s fake tensors carry shapes and types only, so layers of a 70B model run here in a tenth of
a second and in no memory, with every operation of the real run: autocast's copies, an adapter's,
the recomputation of a checkpointed layer. Depth is linear, so one and two layers give the result
for any number of them. Attention is torch's flash kernel: what it keeps (queries, keys, values, the
result and one number a query and head) is what every attention without a matrix of scores keeps.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import ModelError
from prefkit.model.head.fused import unwrap
from prefkit.model.router import experts_of
from prefkit.plan.costs.fake import (
    ATTENTION,
    LiveBytes,
    materialise,
    register_attention,
    silent,
)
from prefkit.plan.inputs.meta_model import Lora, build

_DEPTHS = (1, 2)


@dataclass(frozen=True)
class Body:
    """Bytes that a model's body takes beside its parameters, their gradients and the head.

    Attributes:
        at_head: held when the forward reaches the head, hidden states and autocast's copies of
            weights included.
        held: of that, what is still held when the forward has ended.
        forward: the most during the forward.
        backward: the most during the backward, the gradient of the hidden states included, that of
            the parameters excluded.
        last: the same while the model's first layer, the last to be reached, goes backward.
        reading: the most in a forward without gradient.
        layer: held for each layer until its backward.
    """

    at_head: float
    held: float
    forward: float
    backward: float
    last: float
    reading: float
    layer: float

    def offloaded(self, layers: int) -> "Body":
        """The same where what each of the layers keeps waits on the host."""
        gone = layers * self.layer
        return replace(
            self,
            at_head=self.at_head - gone,
            held=self.held - gone,
            forward=self.forward - gone,
            backward=self.backward - gone,
            last=self.last - self.layer,
        )

    def scaled(self, factor: float) -> "Body":
        """The same for that many times the tokens."""
        return Body(*(factor * size for size in vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class BodyRun:
    """How a body is run.

    Attributes:
        dtype: of the weights when they are used (FSDP2 gathers them in the mixed precision's).
        autocast: the mixed precision's dtype, or None.
        checkpointing: each layer is recomputed in the backward.
        attention: `attn_implementation`.
        lora: the adapter, or None.
        gathered: parameters are FSDP2's, cast as a whole: an adapter has the weights' dtype.
        rows: number of padded rows, with a mask; 0 = one row without padding.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    attention: str | None = None
    lora: Lora | None = None
    gathered: bool = False
    rows: int = 0


_FEW = 16  # tokens of a row that shows whether a model can be run without data


def trace_body(config: Any, run: BodyRun, layers: int, tokens: int) -> Body:
    """A body's bytes at any depth, from runs of one and of two layers.

    Args:
        config: of `prefkit.plan.inputs.shape.load_config`.
        run: how the model is run.
        layers: depth to plan for.
        tokens: tokens of a row: of the one row without padding, or of each padded row.

    Raises:
        ModelError: the model cannot be run on tensors without data.
    """
    # Most models of experts cannot be: say so before a long row is run.
    if experts_of(config.get_text_config()):
        _run(config, run, _DEPTHS[0], min(tokens, _FEW))
    one, two = (_run(config, run, depth, tokens) for depth in _DEPTHS)
    at_head, held, forward, backward = (
        a + (b - a) * (layers - 1) for a, b in zip(one[:4], two[:4], strict=True)
    )
    # A forward without gradient keeps nothing of a layer but its result, and the first one's input.
    return Body(at_head, held, forward, backward, one[3], two[4], two[1] - one[1])


def _run(config: Any, run: BodyRun, layers: int, tokens: int) -> tuple[float, ...]:
    """One forward and backward, one forward without gradient: five fields of `Body`."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    register_attention()
    attention = ATTENTION if run.rows == 0 else run.attention
    model = build(config, layers=layers, dtype=run.dtype, attention=attention, lora=run.lora)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.train()
    if run.checkpointing:
        _checkpoint(model)
    try:
        with silent(), FakeTensorMode():
            materialise(model, run.dtype if run.gathered else None)
            read = _body(model, run, tokens)
            trained = _train(model, run, read)
            model.requires_grad_(False)  # autocast keeps no copies of weights that do not train
            with torch.no_grad(), _autocast(run), LiveBytes() as live:
                read(False)
            return (*trained, live.peak)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if experts := experts_of(config.get_text_config()):
            raise ModelError(
                f"model: a {config.model_type} routes tokens to {experts} experts by their data, "
                "so its activations cannot be planned without data."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model: a {config.model_type} cannot be run without data, so its activations cannot "
            f"be planned: {reason}"
        ) from error


def _checkpoint(model: Any) -> None:
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.23 and later
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def _train(model: Any, run: BodyRun, read: Callable[[bool], Tensor]) -> tuple[float, ...]:
    """(at_head, held, forward, backward)."""
    for parameter in model.parameters():
        if parameter.requires_grad:  # counted by their own sizes, not here
            parameter.register_post_accumulate_grad_hook(_drop_grad)
    # Where nothing in front of the first layer trains, nothing is kept for it.
    trains_input = run.lora is None or run.checkpointing
    with LiveBytes() as live:
        with _autocast(run):
            hidden = read(trains_input)
            at_head = live.now
        out = _Sink.apply(hidden)
        del hidden  # as in a run, only autograd holds it now
        forward, held = live.peak, live.now
        live.peak = live.now
        out.backward()
    return at_head, held, forward, live.peak


class _Sink(torch.autograd.Function):
    """A head that keeps nothing; its backward makes the gradient of the hidden states."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.like = hidden.shape, hidden.dtype
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return grad.new_empty(shape, dtype=dtype)


def _drop_grad(parameter: Tensor) -> None:
    parameter.grad = None


def _body(model: Any, run: BodyRun, tokens: int) -> Callable[[bool], Tensor]:
    """The forward of the model between embedding and head: (rows, tokens, D) hidden states."""
    inner: Any = unwrap(model).base_model
    width = model.get_input_embeddings().weight.shape[1]
    rows = run.rows or 1

    def read(trains_input: bool) -> Tensor:
        leaf = torch.empty(rows, tokens, width, dtype=run.dtype, requires_grad=trains_input)
        inputs: dict[str, Any] = {"inputs_embeds": leaf, "use_cache": False}
        if run.rows:
            # The shorter side is padded, so there is a mask. transformers would look at its values.
            inputs["attention_mask"] = torch.empty(rows, 1, tokens, tokens, dtype=torch.bool)
        else:
            inputs["position_ids"] = torch.arange(tokens)[None]
        return inner(**inputs).last_hidden_state

    return read


def _autocast(run: BodyRun) -> Any:
    if run.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=run.autocast)
